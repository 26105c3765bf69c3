//! The program `v2v`.

fn main() -> std::process::ExitCode {
    tools::v2v::main()
}
