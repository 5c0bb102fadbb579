"""Everything that asks a cluster a question: doctor, submit, status, and the files that describe a cluster."""
