//! The program `hub`. Everything is in the library, so that tests start the same server.

fn main() -> std::process::ExitCode {
    hub_server::cli::main()
}
