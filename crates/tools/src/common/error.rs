//! How a program fails: one message with its causes, a hint, an exit code.

use std::error::Error as StdError;
use std::fmt::Write;
use std::process::ExitCode;

/// Why a program ends without having done its work. Every error turns into one with `?`.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), hint: None, code: 1 }
    }

    /// The same with one sentence on what to do next.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Failure { hint: Some(hint.into()), ..self }
    }

    /// The same with another exit code.
    pub fn code(self, code: u8) -> Self {
        Failure { code, ..self }
    }

    /// What `error` becomes, for callers that still need it.
    pub fn from_ref(error: &imgcore::Error) -> Self {
        Failure { message: with_causes(error), hint: image_hint(error), code: 1 }
    }

    /// The same in other words.
    pub fn reworded(self, message: impl Into<String>) -> Self {
        Failure { message: message.into(), ..self }
    }

    /// Writes it to the standard error, as `program: message`, and gives the exit code.
    pub fn report(&self, program: &str) -> ExitCode {
        eprintln!("{program}: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("Hint: {hint}");
        }
        ExitCode::from(self.code)
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// What to do next.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The message with its causes.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure { message: with_causes(&error), hint: hint(&error), code: 1 }
    }
}

/// The error and what caused it; causes that the message above already tells are left out.
fn with_causes(error: &dyn StdError) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            let _ = write!(message, ": {text}");
        }
        cause = error.source();
    }
    message
}

fn hint(error: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(v2v::Error::Guest(error)) = error.downcast_ref() {
        return guest_hint(error);
    }
    if let Some(v2v::Error::Image(error)) = error.downcast_ref() {
        return image_hint(error);
    }
    error.downcast_ref().map_or_else(|| error.downcast_ref().and_then(image_hint), guest_hint)
}

fn guest_hint(error: &guestfs::Error) -> Option<String> {
    match error {
        guestfs::Error::Image(error) => image_hint(error),
        guestfs::Error::Missing(_) => Some("'virt doctor' lists everything that this host lacks".into()),
        _ => None,
    }
}

fn image_hint(error: &imgcore::Error) -> Option<String> {
    match error {
        imgcore::Error::Io { action: "open" | "create", source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("the file's owner or root can open it".into())
        }
        imgcore::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Some("make room, or choose another folder for the output".into())
        }
        imgcore::Error::Locked { .. } => Some("shut down the guest or the program that uses it; img's -U reads it as it is now".into()),
        imgcore::Error::Corrupt { format: "qcow2", file, .. } => Some(format!("'img check {file}' lists everything that is damaged")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let io = std::io::Error::new(std::io::ErrorKind::StorageFull, "no room");
        let failure = Failure::from(imgcore::Error::io("x.img", "write", Some(16), io));
        assert_eq!(failure.message(), "x.img: cannot write at offset 0x10: no room");
        assert!(failure.hint.unwrap().starts_with("make room"));
    }

    #[test]
    fn what_the_host_lacks_is_the_doctors() {
        let missing = || guestfs::Error::Missing("no QEMU".into());
        for failure in [Failure::from(missing()), Failure::from(v2v::Error::Guest(missing()))] {
            assert!(failure.hint.unwrap().contains("virt doctor"));
        }
        let io = std::io::Error::new(std::io::ErrorKind::StorageFull, "no room");
        let image = imgcore::Error::io("x.img", "write", None, io);
        assert!(Failure::from(v2v::Error::Guest(image.into())).hint.unwrap().starts_with("make room"));
    }
}
