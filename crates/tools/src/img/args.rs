//! Arguments that several commands share, and what they mean.

use clap::ValueEnum;
use imgcore::formats::{CreateOptions, FormatDriver, FormatOption};

use crate::common::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Human,
    /// For programs.
    Json,
}

/// Parses `-o name=value,name=value`; `,,` stands for a comma in a value.
pub(crate) fn parse_options(texts: &[String]) -> Result<CreateOptions, Failure> {
    let mut options = CreateOptions::new();
    for text in texts {
        for pair in text.replace(",,", "\0").split(',') {
            let pair = pair.replace('\0', ",");
            options = match pair.split_once('=') {
                Some((name, value)) => options.set(name, value),
                None => options.set(pair, "on"),
            };
        }
    }
    Ok(options)
}

/// Whether `-o help` (or `list`, `?`) was given.
pub(crate) fn wants_help(texts: &[String]) -> bool {
    texts.iter().flat_map(|t| t.split(',')).any(|o| matches!(o, "help" | "list" | "?"))
}

/// Lists the options of what is called `name`.
pub(crate) fn print_options(name: &str, options: &[FormatOption]) {
    println!("Supported {name} options:");
    for option in options {
        println!("  {:<22} - {}", format!("{}={}", option.name, option.value), option.help);
    }
}

/// Prints the options of `driver` if [help was wanted](wants_help).
pub(crate) fn options_help(texts: &[String], driver: &dyn FormatDriver) -> bool {
    if wants_help(texts) {
        let mut options: Vec<_> = driver.options().iter().filter(|o| o.name != "size").copied().collect();
        options.push(FormatOption { name: "size", value: "<size>", help: "Virtual disk size" });
        print_options(driver.name(), &options);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_split_at_single_commas() {
        let options = parse_options(&["a=1,b=x,,y".into(), "c".into()]).unwrap();
        assert_eq!(options.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "x,y"), ("c", "on")]);
    }
}
