"""Run by Alembic with the connection that `store.open_engine` hands over, inside its transaction."""

from alembic import context

from dicomguard.ledger import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=tables.VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
