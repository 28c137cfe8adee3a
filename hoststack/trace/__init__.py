"""`hoststack trace`: what XDP and the engines of running processes do, live, by way of bcc."""
