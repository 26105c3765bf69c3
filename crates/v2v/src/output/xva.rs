//! The appliance in which XenServer and XCP-ng import a result, as a machine that a BIOS or UEFI starts.

use std::path::Path;
use std::sync::Arc;

use imgcore::formats::{ContainerWriter, CreateOptions, SourceDisk};
use imgcore::storage::{Appender, NewFile};
use imgcore::{Image, Progress, copy};
use xva::XvaContainer;

use super::{Machine, MachineDisk, MachineNic, Plug};
use crate::Result;

/// Writes the appliance with these disks, in the machine's order.
pub fn write(machine: &Machine, disks: Vec<Arc<dyn Image>>, file: &Path, progress: &dyn Progress) -> Result<()> {
    let disk = |(disk, image): (&MachineDisk, Arc<dyn Image>)| SourceDisk { name: disk.device.clone(), image };
    let disks: Vec<SourceDisk> = machine.disks.iter().zip(disks).map(disk).collect();
    let archive = NewFile::create(file)?;
    let mut out = Appender::new(archive.storage());
    XvaContainer::default().write(&disks, &options(machine), copy::Options::default().threads, &mut out, progress)?;
    archive.commit()?;
    Ok(())
}

/// Whether all NICs are plugged in at one place: the appliance names no other.
pub fn has_one_network(nics: &[MachineNic]) -> bool {
    nics.windows(2).all(|pair| pair[0].plug == pair[1].plug)
}

fn options(machine: &Machine) -> CreateOptions {
    let macs: Vec<&str> = machine.nics.iter().map(|nic| nic.mac.as_str()).collect();
    let options = CreateOptions::new()
        .set("name", machine.name.as_str())
        .set("description", machine.description.trim())
        .set("memory", format!("{}M", machine.memory_mib))
        .set("vcpus", machine.vcpus.to_string())
        .set("boot", if machine.uefi { "uefi" } else { "bios" })
        .set("mac", if macs.is_empty() { "none".into() } else { macs.join("/") });
    // A network of that name goes before the bridge. Where there is none, which a bridge's name is meant to find, the bridge decides.
    match machine.nics.first().and_then(|nic| Some((nic.plug.as_ref()?, nic.network.as_deref()))) {
        Some((Plug::Bridge(bridge), network)) => options.set("bridge", bridge.as_str()).set("network", network.unwrap_or(bridge)),
        Some((Plug::Network(network), _)) => options.set("network", network.as_str()),
        None => options,
    }
}
