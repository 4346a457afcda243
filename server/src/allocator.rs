//! Where the memory of the process comes from.
//!
//! A call allocates some dozens of small pieces, and mostly another thread frees them: mimalloc is
//! made for that. `docs/benchmarks.md` has what it is worth here.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
