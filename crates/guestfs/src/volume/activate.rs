//! Makes volumes that lie on others appear in an appliance: from below, as they were found.

use super::{Place, Step, Volume, Volumes};
use crate::engine::{Command, Session};
use crate::{Error, Result, lvm, show};

impl Volumes {
    /// Makes the volumes that are no part of one disk appear in an appliance that has these disks.
    ///
    /// # Errors
    /// What of the guest's volumes cannot be used; not for what lacks members, the use of which fails later.
    pub fn activate(&self, session: &mut dyn Session) -> Result<()> {
        self.activate_on(session, &|volume| Some(volume.appliance_device()))
    }

    /// The same in an appliance that has copies of the disks, laid out in another way: `device` says where a volume is there.
    pub fn activate_on(&self, session: &mut dyn Session, device: &dyn Fn(&Volume) -> Option<String>) -> Result<()> {
        for step in &self.steps {
            match *step {
                Step::Array(position) => self.assemble(position, session, device)?,
                Step::Unlocked(encrypted) => self.map(encrypted, session, device)?,
                Step::Group(position) => match self.groups.get(position) {
                    Some(group) if group.missing > 0 => drop(lvm::activate(session, &group.name)),
                    Some(group) => lvm::activate(session, &group.name)?,
                    None => {}
                },
            }
        }
        Ok(())
    }

    fn assemble(&self, position: usize, session: &mut dyn Session, device_of: &dyn Fn(&Volume) -> Option<String>) -> Result<()> {
        let Some(array) = self.arrays.get(position) else { return Ok(()) };
        let device = array.device();
        let mut argv: Vec<String> = ["mdadm", "--assemble", "--run", "--config=none", &device].map(String::from).to_vec();
        let members = array.members.iter().filter_map(|member| device_of(self.volumes.get(*member)?));
        argv.extend(members.map(|member| session.name_inside(&member)));
        let outcome = run(session, &Command::new(&argv), "array")?;
        if outcome.is_err() && array.missing == 0 {
            return outcome.map_err(Error::Invalid);
        }
        // Whether to rebuild is the guest's business: here it would copy whole disks.
        let still =
            Command { stdin: b"frozen\n".to_vec(), ..Command::new(["tee", &format!("/sys/block/{}/md/sync_action", &device[5..])]) };
        drop(run(session, &still, "array")?);
        Ok(())
    }

    /// The key goes by the standard input: a command line could be seen by others.
    fn map(&self, encrypted: usize, session: &mut dyn Session, device_of: &dyn Fn(&Volume) -> Option<String>) -> Result<()> {
        let Some((_, unlocked)) = self.unlocked.iter().find(|(of, _)| *of == encrypted) else { return Ok(()) };
        let Some(below) = self.volumes.get(encrypted).and_then(device_of) else { return Ok(()) };
        let above = self.volumes.iter().find(|v| v.place == Place::Unlocked { volume: encrypted });
        let Some(name) = above.and_then(|v| v.device.strip_prefix("/dev/mapper/")) else { return Ok(()) };
        let table = unlocked.table(&session.name_inside(&below));
        let mut command = Command::new(["dmsetup", "create", name]);
        command.stdin = table.to_vec();
        // There is no udev that would make its node.
        command.env.push((b"DM_DISABLE_UDEV".to_vec(), b"1".to_vec()));
        let outcome = run(session, &command, "encrypted volume");
        zeroize::Zeroize::zeroize(&mut command.stdin);
        outcome?.map_err(Error::Invalid)
    }
}

/// Runs a program in the appliance; the inner failure is the program's own.
fn run(session: &mut dyn Session, command: &Command, what: &str) -> Result<Result<(), String>> {
    let output = session.run_tool(command)?;
    if output.status == 0 {
        return Ok(Ok(()));
    }
    Ok(Err(format!("an {what} of the guest cannot be used: {}", show(&output.stderr).trim())))
}
