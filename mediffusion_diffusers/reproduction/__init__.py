"""The paper's tables and figures made again from our own runs, each beside what is printed there."""
