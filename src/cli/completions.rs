//! `tlpipe completions` and `tlpipe man`: what shells and `man` know of the program.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::Shell as ShellName;
use serde_json::json;

use super::shell::Shell;

/// Arguments of `tlpipe completions`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe completions bash > ~/.local/share/bash-completion/completions/tlpipe\n  \
    tlpipe completions zsh > ~/.zfunc/_tlpipe                      ~/.zfunc in $fpath, before compinit\n  \
    tlpipe completions fish > ~/.config/fish/completions/tlpipe.fish\n  \
    tlpipe completions powershell >> $PROFILE")]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: ShellName,
}

/// Arguments of `tlpipe man`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe man ~/.local/share/man/man1                then: man tlpipe-run")]
pub struct ManArgs {
    /// Folder to write to; made where there is none.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the script by which a shell completes commands and flags.
pub fn completions(args: &CompletionsArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "tlpipe", &mut script);
    let script = String::from_utf8_lossy(&script).trim_end().to_owned();
    shell.output.result(&json!({ "shell": args.shell.to_string(), "script": script }), || script.clone())
}

/// Writes a manual page for each command.
pub fn man(args: &ManArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let folder = &args.folder;
    let told = || format!("{}: the manual pages cannot be written; name a folder that is writable", folder.display());
    std::fs::create_dir_all(folder).with_context(told)?;
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    write_pages(&command, folder, &mut pages).with_context(told)?;
    shell.output.result(&json!({ "pages": pages }), || format!("{}: {} manual pages, section 1", folder.display(), pages.len()))
}

fn write_pages(command: &Command, folder: &Path, pages: &mut Vec<PathBuf>) -> std::io::Result<()> {
    pages.push(clap_mangen::Man::new(command.clone()).generate_to(folder)?);
    command.get_subcommands().filter(|one| !one.is_hide_set()).try_for_each(|one| write_pages(one, folder, pages))
}
