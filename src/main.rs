//! The `tlpipe` program; everything is in the library.

fn main() -> std::process::ExitCode {
    tlpipe::cli::main()
}
