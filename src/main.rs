//! The `firebank` command. Everything it does is in the library.

use std::process::ExitCode;

// Migrations make and drop many small values, and so do all that decode documents: the system's allocator takes a fifth of a
// migration's time (`cargo bench --bench migrations`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    firebank::cli::main()
}
