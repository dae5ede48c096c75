//! The binary. All of it is in [`roomcast::cli`].

fn main() -> std::process::ExitCode {
    roomcast::cli::run()
}
