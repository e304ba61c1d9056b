"""Storage SCP: C-ECHO, and C-STORE into the spool. Knows no database and no model, so that neither can stop reception."""
