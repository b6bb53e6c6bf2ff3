//! `sgctl completion`: scripts for shells.

use clap_complete::Shell;

use crate::failure::Failure;
use crate::output;

/// Print a completion script for a shell, as: source <(sgctl completion bash)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which shell
    shell: Supported,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Supported {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

pub(crate) fn run(args: Args, mut grammar: clap::Command) -> Result<(), Failure> {
    let shell = match args.shell {
        Supported::Bash => Shell::Bash,
        Supported::Zsh => Shell::Zsh,
        Supported::Fish => Shell::Fish,
        Supported::Powershell => Shell::PowerShell,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar, "sgctl", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
