//! How full a guest's filesystems are.

use crate::engine::Session;
use crate::guest::{read_only, start};
use crate::{EngineChoice, Error, OpenOptions, Result, StatFs, Volumes, reader};

/// The filesystems and their space, by the volume's position, in the order in which they are [listed](Volumes::listed). What cannot be
/// read in this process the appliance tells; what it cannot mount is left out, and told of.
pub fn statfs(volumes: &Volumes, options: &OpenOptions<'_>) -> Result<Vec<(usize, StatFs)>> {
    let mut found = Vec::new();
    let mut session: Option<Box<dyn Session>> = None;
    for index in volumes.listed() {
        let Some(volume) = volumes.volumes.get(index).filter(|v| v.may_hold_files()) else { continue };
        let direct = if options.engine == EngineChoice::Appliance {
            Err("the appliance was asked for".to_string())
        } else {
            let open = |image| reader::open(volume.kind(), image, 0, volume.len);
            volumes.image(volume).and_then(open).and_then(|reader| reader.statfs()).map_err(|e| e.to_string())
        };
        let why = match direct {
            Ok(statfs) => {
                found.push((index, statfs));
                continue;
            }
            Err(why) => why,
        };
        if options.engine == EngineChoice::Direct || options.appliance.is_none() {
            (options.log)(&format!("{} is left out: {why}", volume.device));
            continue;
        }
        let session = match &mut session {
            Some(session) => session,
            none => {
                (options.log)(&format!("{} is read in the appliance: {why}", volume.device));
                none.insert(start(volumes, read_only(volumes), options)?)
            }
        };
        let mounted = session.mount(&volume.appliance_device(), b"/", volume.kind(), "ro");
        let statfs = mounted.and_then(|()| session.as_fs().statfs(b"/"));
        match statfs {
            Ok(statfs) => found.push((index, statfs)),
            Err(e @ Error::Appliance { .. }) => return Err(e),
            Err(e) => (options.log)(&format!("{} is left out: {e}", volume.device)),
        }
        session.unmount_all()?;
    }
    session.map_or(Ok(()), |session| session.shutdown())?;
    Ok(found)
}
