//! Partitions that get other sizes and places, with what is in them: for roots that grow, and for `virt-resize`.

pub mod boot;
pub mod contents;
pub mod plan;
pub mod programs;

/// Why partitions cannot be as they are wanted.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Unfit {
    /// What is in the way.
    pub message: String,
    /// What may be done about it, in the words of `virt-resize`.
    pub hint: Option<String>,
}

impl Unfit {
    fn new(message: impl Into<String>) -> Self {
        Unfit { message: message.into(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Unfit { hint: Some(hint.into()), ..self }
    }
}

impl From<imgcore::Error> for Unfit {
    fn from(error: imgcore::Error) -> Self {
        Unfit::new(error.to_string())
    }
}
