"""One thin command per task: parse, call, print."""
