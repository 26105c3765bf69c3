//! `-o name=value,name=value`: the options of a format.

use imgcore::formats::{CreateOptions, FormatDriver, FormatOption};

use super::numbers::option_size;
use crate::common::Failure;

/// What the file below any format has; qemu-img lists them when the output is named.
const FILE_OPTIONS: [FormatOption; 2] = [
    FormatOption { name: "extent_size_hint", value: "<size>", help: "Extent size hint for the image file, 0 to disable" },
    FormatOption { name: "nocow", value: "<bool (on/off)>", help: "Turn off copy-on-write (valid only on btrfs)" },
];

/// Splits `name=value,name=value`; `,,` stands for a comma in a value, and a name alone is `on`.
pub(crate) fn parse_pairs(text: &str) -> Vec<(String, String)> {
    split(text)
        .into_iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (pair, "on".to_owned()),
        })
        .collect()
}

fn split(text: &str) -> Vec<String> {
    text.replace(",,", "\0").split(',').map(|pair| pair.replace('\0', ",")).filter(|pair| !pair.is_empty()).collect()
}

/// The options given with `-o`, possibly several times. Those of the host's file are known, and do nothing here.
pub(crate) fn parse_options(texts: &[String]) -> Result<CreateOptions, Failure> {
    let mut options = CreateOptions::new();
    for text in texts {
        if text.is_empty() || text.starts_with(',') {
            return Err(Failure::new(format!("Invalid option list: {text}")));
        }
        for (name, value) in parse_pairs(text) {
            options = options.set(name, value);
        }
    }
    Ok(FILE_OPTIONS.iter().fold(options, |options, known| options.without(known.name)))
}

/// Refuses what `driver` does not have, and values that are not of the option's kind.
pub(crate) fn check_options(options: &CreateOptions, driver: &dyn FormatDriver) -> Result<(), Failure> {
    options.check(driver)?;
    for (name, value) in options.iter() {
        let kind = driver.options().iter().find(|o| o.name == name).map_or("", |o| o.value);
        match kind {
            "<size>" => drop(option_size(name, value)?),
            "<num>" if value.parse::<u64>().is_err() => return Err(Failure::new(format!("Parameter '{name}' expects a number"))),
            "<bool (on/off)>" if !matches!(value, "on" | "off") => {
                return Err(Failure::new(format!("Parameter '{name}' expects 'on' or 'off'")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether `-o help` (or `?`) was given.
pub(crate) fn wants_help(texts: &[String]) -> bool {
    texts.iter().flat_map(|t| split(t)).any(|o| matches!(&*o, "help" | "?"))
}

/// Lists the options of what is called `name`; an empty name is left out.
pub(crate) fn print_options(name: &str, options: &[FormatOption]) {
    println!("Supported {name}{}options:", if name.is_empty() { "" } else { " " });
    print_list(options);
}

fn print_list(options: &[FormatOption]) {
    for option in options {
        println!("  {:<22} - {}", format!("{}={}", option.name, option.value), option.help);
    }
}

/// Prints the options of `driver`, with those of the file if the output is named.
pub(crate) fn print_help(driver: &dyn FormatDriver, named: bool) {
    let mut options = driver.options().to_vec();
    if options.iter().all(|o| o.name != "size") {
        options.push(FormatOption { name: "size", value: "<size>", help: "Virtual disk size" });
    }
    if named {
        options.extend(FILE_OPTIONS);
    } else if driver.name() == "raw" {
        // What a raw image can be told is its file's business.
        options.retain(|o| o.name == "size");
    }
    options.sort_by_key(|o| o.name);
    print_options(if named { "" } else { driver.name() }, &options);
    if !named {
        println!("\nThe protocol level may support further options.\nSpecify the target filename to include those options.");
    }
}

/// Prints what can be amended in images of `driver`.
pub(crate) fn print_amend_help(driver: &dyn FormatDriver) -> Result<(), Failure> {
    if driver.amend_options().is_empty() {
        return Err(Failure::new(format!("Format driver '{}' does not support option amendment", driver.name())));
    }
    println!("Amend options for '{}':", driver.name());
    print_list(driver.amend_options());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_split_at_single_commas() {
        let options = parse_options(&["a=1,b=x,,y".into(), "c".into()]).unwrap();
        assert_eq!(options.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "x,y"), ("c", "on")]);
        assert_eq!(parse_options(&[",a=1".into()]).unwrap_err().message(), "Invalid option list: ,a=1");
    }
}
