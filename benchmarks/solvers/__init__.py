"""What `benchmarks.accuracy` compares: the problems, the error of a law, and one module for each library's solvers."""
