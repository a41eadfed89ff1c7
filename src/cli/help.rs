//! `tlpipe --help`: the commands in groups.

use clap::Command;

/// What the commands are for, in the order of the work.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Pipeline", &["init", "run", "extract", "fit-head", "report"]),
    ("Look closer", &["audit", "compare", "bench"]),
    ("Deploy", &["export", "verify", "predict", "serve", "embed"]),
    ("Manage", &["models", "data", "store", "doctor", "completions", "man"]),
];

/// The command with its subcommands in groups, which clap has no word for.
pub fn grouped(command: Command) -> Command {
    let (header, literal) = (*command.get_styles().get_header(), *command.get_styles().get_literal());
    let mut text = String::new();
    for (title, names) in GROUPS {
        text.push_str(&format!("{header}{title}:{header:#}\n"));
        for subcommand in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("  {literal}{:<11}{literal:#}  {about}\n", subcommand.get_name()));
        }
        text.push('\n');
    }
    command.help_template(format!(
        "{{before-help}}{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}{header}Global options:{header:#}\n{{options}}{{after-help}}"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::*;

    /// Every command of the program and the words that call it.
    fn walk(command: &Command, path: &[String], visit: &mut dyn FnMut(&Command, &[String])) {
        visit(command, path);
        for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
            let path = [path, &[subcommand.get_name().to_owned()]].concat();
            walk(subcommand, &path, visit);
        }
    }

    /// The words of a line as a shell reads them, up to a comment (two spaces, or `#`), a pipe or a redirection.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
        let mut letters = line.trim().chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\'' | '"' if quote.is_none() => quote = Some(letter),
                _ if quote == Some(letter) => quote = None,
                '#' | '|' | '<' | '>' if quote.is_none() && word.is_empty() => break,
                ' ' if quote.is_none() => {
                    words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
                    if letters.peek() == Some(&' ') {
                        break;
                    }
                }
                _ => word.push(letter),
            }
        }
        words.extend(Some(word).filter(|word| !word.is_empty()));
        words
    }

    /// The calls of the program in a text: from the last `tlpipe ` that begins a command of a line.
    fn calls(text: &str) -> Vec<Vec<String>> {
        let call = |line: &str| {
            let line = line.trim_start();
            let at = line.rfind("| tlpipe ").map(|at| at + 2).or_else(|| line.starts_with("tlpipe ").then_some(0))?;
            Some(words(&line[at..]))
        };
        text.lines().filter_map(call).collect()
    }

    /// Parses a call; gives the names of the command that it is of.
    fn parsed(call: &[String]) -> Vec<String> {
        let matches = command().try_get_matches_from(call).unwrap_or_else(|error| panic!("{}: {error}", call.join(" ")));
        let mut names = Vec::new();
        let mut at = &matches;
        while let Some((name, inner)) = at.subcommand() {
            names.push(name.to_owned());
            at = inner;
        }
        names
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_stands_in_one_group_and_fits_a_line() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let command = command();
        let mut all: Vec<&str> = command.get_subcommands().map(Command::get_name).filter(|name| *name != "help").collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
        let help = command.clone().render_help().to_string();
        for name in all {
            let line = help.lines().find(|line| line.starts_with(&format!("  {name} "))).unwrap();
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn every_command_has_an_example_and_every_example_parses() {
        let mut lacking = Vec::new();
        walk(&command(), &[], &mut |command, path| {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let calls: Vec<Vec<String>> = calls(&text).iter().map(|call| parsed(call)).collect();
            if !text.contains("Example") || !calls.iter().any(|call| call.starts_with(path)) {
                lacking.push(path.join(" "));
            }
            assert!(calls.iter().all(|call| call.starts_with(path)), "{path:?} shows another command: {calls:?}");
        });
        assert!(lacking.is_empty(), "no example: {lacking:?}");
    }

    #[test]
    fn what_the_readme_says_to_type_parses() {
        let readme = include_str!("../../README.md");
        let shown: Vec<&str> = readme.split("```sh\n").skip(1).filter_map(|block| block.split("```").next()).collect();
        let calls: Vec<Vec<String>> = shown.iter().flat_map(|block| calls(block)).collect();
        assert!(calls.len() > 20, "{calls:?}");
        calls.iter().for_each(|call| assert!(!parsed(call).is_empty(), "{call:?}"));
    }
}
