"""What a verification leaves behind: terminal, markdown, JSON and figures, all made from one `Run`."""
