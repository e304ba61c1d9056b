"""Storage SCP: C-ECHO, and C-STORE into the spool. Knows no database and no model: neither can stop reception."""
