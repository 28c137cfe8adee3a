"""`hoststack trace`: live statistics of XDP and of the engines of running processes, using bcc."""
