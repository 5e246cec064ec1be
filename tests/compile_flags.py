"""XLA flags of all tests and of the processes that they start. Imports nothing, so that it may come before JAX."""

# Compiling tiny networks is most of the suite's work. LLVM's first level takes a third less time for it than its third,
# and is as fast for the recorded runs; without any level they take eight times as long. A program in one piece compiles
# in four fifths of the time of one that is split for several threads.
COMPILE_FLAGS = "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1"
