"""What tests share: processes with deadlines, a look at what is left behind, and the injection of death and failure."""
