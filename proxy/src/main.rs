//! The `egret` binary: see [`egret::cli`].

fn main() -> std::process::ExitCode {
    egret::cli::main()
}
