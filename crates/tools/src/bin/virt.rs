//! The program `virt`.

fn main() -> std::process::ExitCode {
    tools::virt::main()
}
