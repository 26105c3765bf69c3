//! `virt-inspector`: what is installed, as XML in libguestfs's form or as JSON.

use std::io::Read;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::Guest;
use serde_json::json;

use super::Entry;
use super::options::GuestArgs;
use super::show::Out;
use crate::common::{Failure, json};
use imgcore::xml::Xml;
use system::System;

mod system;
mod xpath;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "inspector", arguments: Inspector::augment_args, run: |matches| run(&Inspector::from_arg_matches(matches)?) };

/// No document for `--xpath` is longer.
const DOCUMENT_LIMIT: u64 = 256 << 20;

/// Tell what is installed in a guest.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-inspector -a disk.qcow2\n  virt-inspector --no-applications --json -d guest.xml\n  virt-inspector -a disk.qcow2 | virt-inspector --xpath 'string(//hostname)'"
)]
struct Inspector {
    #[command(flatten)]
    guest: GuestArgs,
    /// Leave the list of packages out
    #[arg(long)]
    no_applications: bool,
    /// Leave the system's logo out
    #[arg(long)]
    no_icon: bool,
    /// JSON instead of XML
    #[arg(long)]
    json: bool,
    /// Evaluate an XPath expression on the XML of the standard input, and do nothing else
    #[arg(long, value_name = "QUERY")]
    xpath: Option<String>,
}

fn run(args: &Inspector) -> Result<ExitCode, Failure> {
    let mut out = Out::new();
    if let Some(query) = &args.xpath {
        let mut document = String::new();
        std::io::stdin().take(DOCUMENT_LIMIT).read_to_string(&mut document)?;
        out.bytes(xpath::evaluate(&document, query)?.as_bytes())?;
    } else {
        let mut systems = Vec::new();
        args.guest.each_system(&mut |guest| {
            systems.push(look(args, &guest)?);
            Ok(guest.shutdown()?)
        })?;
        if args.json {
            out.bytes(json::pretty(&json!({ "operatingsystems": systems })).as_bytes())?;
            out.bytes(b"\n")?;
        } else {
            let mut xml = Xml::default();
            xml.parent("operatingsystems", &[], |xml| systems.iter().for_each(|system| system.write(xml)));
            out.bytes(xml.document().as_bytes())?;
        }
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn look(args: &Inspector, guest: &Guest) -> Result<System, Failure> {
    let Some(inspection) = &guest.inspection else {
        return Err(Failure::new("with -m nothing is inspected").hint("leave -m away"));
    };
    let applications = if args.no_applications {
        None
    } else {
        let found = guestfs::inspect::packages::applications(guest.fs(), inspection);
        let found = found.map_err(|e| Failure::from(e).hint("--no-applications tells the rest"))?;
        Some(found.unwrap_or_default())
    };
    let icon = if args.no_icon { None } else { guestfs::inspect::icon(guest.fs(), inspection) };
    Ok(System::new(&guest.volumes, inspection, applications, icon))
}
