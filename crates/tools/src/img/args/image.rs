//! The arguments that say how an image is named.

use std::ffi::OsStr;

use clap::Args;

use super::ImageSpec;
use crate::common::Failure;

/// `--format`, `--image-opts` and `--object`, as almost all commands have them.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ImageArgs {
    /// Format of the image; found out when not given
    #[arg(short, long, value_name = "FMT")]
    pub format: Option<String>,
    /// The image is given by keys, as driver=qcow2,file.filename=disk
    #[arg(long)]
    pub image_opts: bool,
    /// A secret and its like; nothing here needs one
    #[arg(long, value_name = "OBJDEF")]
    pub object: Vec<String>,
}

impl ImageArgs {
    /// The image that `name` stands for.
    pub(crate) fn image(&self, name: &OsStr) -> Result<ImageSpec, Failure> {
        self.check()?;
        ImageSpec::parse(name, self.format.as_deref(), self.image_opts)
    }

    /// What must hold before any image is looked at.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.image_opts && self.format.is_some() {
            return Err(Failure::new("--image-opts and --format are mutually exclusive"));
        }
        check_objects(&self.object)
    }
}

/// Secrets are taken, since scripts define them for images that need none; other objects are refused by name.
pub(crate) fn check_objects(texts: &[String]) -> Result<(), Failure> {
    texts.iter().try_for_each(|text| check_object(text))
}

fn check_object(text: &str) -> Result<(), Failure> {
    let pairs = super::parse_pairs(text);
    let kind = match pairs.first() {
        Some((name, value)) if name == "qom-type" => value.as_str(),
        Some((name, _)) => name.as_str(),
        None => "",
    };
    if kind != "secret" && !kind.starts_with("tls-creds") {
        return Err(Failure::new(format!("Parameter 'qom-type' does not accept value '{kind}'")));
    }
    if pairs.iter().all(|(name, _)| name != "id") {
        return Err(Failure::new("Parameter 'id' is missing"));
    }
    Ok(())
}
