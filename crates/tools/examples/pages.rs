//! Writes the programs' manual pages and shell completions: `pages DIR`. For `make install` and the package.

use std::error::Error;
use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::{Shell, generate_to};

const PROGRAMS: &[fn() -> Command] = &[tools::img::command, tools::v2v::command, tools::virt::command];

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: pages DIR")?;
    let dir = Path::new(&dir);
    for program in PROGRAMS {
        write(program(), dir)?;
    }
    Ok(())
}

fn write(program: Command, dir: &Path) -> Result<(), Box<dyn Error>> {
    let man = dir.join("man");
    fs::create_dir_all(&man)?;
    // One page for the program and one for each command, as `img-convert`.
    clap_mangen::generate_to(program.clone(), &man)?;
    complete(program.clone(), program.get_name(), dir)?;
    if program.get_name() == "virt" {
        // Each command is also a program of its own name.
        for command in program.get_subcommands() {
            complete(command.clone(), &format!("virt-{}", command.get_name()), dir)?;
        }
    }
    Ok(())
}

fn complete(mut program: Command, name: &str, dir: &Path) -> Result<(), Box<dyn Error>> {
    for (shell, folder) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder)?;
        let written = generate_to(shell, &mut program, name, &folder)?;
        if shell == Shell::Bash {
            // bash-completion loads a file by the program's bare name.
            fs::rename(&written, folder.join(name))?;
        }
    }
    Ok(())
}
