//! The program `img`.

fn main() -> std::process::ExitCode {
    tools::img::main()
}
