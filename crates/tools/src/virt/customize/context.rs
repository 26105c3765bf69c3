//! What an operation works with: the guest in its appliance, and words for the user.

use std::sync::Arc;
use std::time::Instant;

use guestfs::engine::{Command, RELAY_PORT, Session};
use guestfs::{Attributes, Error, Ext, FileType, Volumes};

use super::super::show::join;
use super::accounts::Crypto;
use super::glob;
use super::proxy::Proxy;
use crate::common::Failure;
use crate::virt::launched::checked;

/// Configuration files are no larger.
const LIMIT: u64 = 64 << 20;

/// The guest that is being changed.
pub(in super::super) struct Context<'s> {
    pub session: &'s mut dyn Session,
    /// libguestfs's name of its system.
    pub system: &'static str,
    /// Its disks and volumes, as they were found.
    pub volumes: &'s Volumes,
    /// How passwords are hashed, if the user says so.
    pub crypto: Option<Crypto>,
    pub quiet: bool,
    pub verbose: bool,
    pub began: Instant,
    /// The way to the guest's package mirrors, where it is open.
    pub proxy: Option<Arc<Proxy>>,
    /// Whether GRUB's settings name volume groups by their UUIDs, once it was looked.
    pub grub_names_groups: Option<bool>,
}

impl Context<'_> {
    /// What is being done, as libguestfs's programs say it.
    pub(in super::super) fn say(&self, what: &str) {
        if !self.quiet {
            println!("[{:6.1}] {what}", self.began.elapsed().as_secs_f64());
        }
    }

    /// The content of a file; empty if there is none.
    pub fn read_or_empty(&self, path: &[u8]) -> Result<Vec<u8>, Failure> {
        match self.session.read(path, LIMIT) {
            Err(Error::NotFound(_)) => Ok(Vec::new()),
            content => Ok(content?),
        }
    }

    /// The content of a file that must be there.
    pub fn read(&self, path: &[u8]) -> Result<Vec<u8>, Failure> {
        Ok(self.session.read(path, LIMIT)?)
    }

    /// Replaces a file's content and keeps the rest.
    pub fn write(&mut self, path: &[u8], content: &[u8]) -> Result<(), Failure> {
        Ok(self.session.write(path, &mut &*content, None)?)
    }

    /// Makes a new file, or gives an old one these attributes, too.
    pub fn write_as(&mut self, path: &[u8], content: &[u8], attributes: Attributes) -> Result<(), Failure> {
        Ok(self.session.write(path, &mut &*content, Some(attributes))?)
    }

    /// Makes a directory and those above it that are missing; how they were made tells `attributes`.
    pub fn make_directories(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Failure> {
        let mut so_far = Vec::new();
        for word in path.split(|b| *b == b'/').filter(|w| !w.is_empty()) {
            so_far = [so_far.as_slice(), b"/", word].concat();
            if !self.session.is_dir(&so_far) {
                self.session.mkdir(&so_far, attributes)?;
            }
        }
        Ok(())
    }

    /// Makes a symbolic link, in place of what had the name.
    pub fn symlink(&mut self, target: &[u8], path: &[u8]) -> Result<(), Failure> {
        self.remove(path)?;
        Ok(self.session.symlink(target, path)?)
    }

    /// Removes a file, or a directory with all that is in it, without following any link. Nothing may be there.
    pub fn remove(&mut self, path: &[u8]) -> Result<(), Failure> {
        let stat = match self.session.lstat(path) {
            Err(Error::NotFound(_)) => return Ok(()),
            stat => stat?,
        };
        if stat.kind != FileType::Directory {
            return Ok(self.session.remove(path)?);
        }
        // Directories on the way, and whether their content was listed.
        let mut left = vec![(path.to_vec(), false)];
        while let Some((directory, listed)) = left.pop() {
            if listed {
                self.session.remove(&directory)?;
                continue;
            }
            let entries = self.session.read_dir(&directory)?;
            left.push((directory.clone(), true));
            for entry in entries {
                let path = join(&directory, &entry.name);
                match entry.kind {
                    FileType::Directory => left.push((path, false)),
                    _ => self.session.remove(&path)?,
                }
            }
        }
        Ok(())
    }

    /// The paths that a pattern with `*`, `?` and `[…]` names.
    pub fn matching(&self, pattern: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        glob::expand(self.session.as_fs(), pattern)
    }

    /// Removes all that a pattern names.
    pub fn remove_matching(&mut self, pattern: &[u8]) -> Result<(), Failure> {
        self.matching(pattern)?.iter().try_for_each(|path| self.remove(path))
    }

    /// Runs a command in the guest. What it wrote is shown when it fails, and with `-v`.
    pub fn run(&mut self, command: &Command, what: &str) -> Result<(), Failure> {
        let output = match &self.proxy {
            None => self.session.run(command)?,
            Some(proxy) => {
                let mut command = command.clone();
                let address = format!("http://127.0.0.1:{RELAY_PORT}");
                command.env.extend(["http_proxy", "https_proxy"].map(|name| (name.into(), address.clone().into())));
                self.session.run_relayed(&command, proxy.clone())?
            }
        };
        let written = [output.stdout, output.stderr].concat();
        let text: Vec<String> = written.split(|b| *b == b'\n').map(guestfs::show).collect();
        let text = text.join("\n");
        if output.status != 0 {
            let end = if output.status == 127 { "is not in the guest".into() } else { format!("failed with exit code {}", output.status) };
            let refused = self.proxy.as_ref().map(|p| p.refused()).unwrap_or_default();
            let refused: String = refused.iter().map(|r| format!("\nnot let through: {}", guestfs::show(r.as_bytes()))).collect();
            let hint = match refused.is_empty() {
                true => "the image is as it was",
                false => "the image is as it was; --mirror HOST[:PORT] lets through what is meant",
            };
            return Err(Failure::new(format!("{what}: {end}\n{}{refused}", text.trim_end())).hint(hint));
        }
        if self.verbose {
            eprint!("{text}");
        }
        Ok(())
    }

    /// Runs a program of this machine's in the appliance.
    pub fn tool<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Result<(), Failure> {
        let name = words.first().map(|w| guestfs::show(w.as_ref())).unwrap_or_default();
        let output = self.session.run_tool(&Command::new(words))?;
        checked(&name, output).map(drop)
    }

    /// The first of these programs that the guest has.
    pub fn program(&self, programs: &[&'static str]) -> Option<&'static str> {
        let has = |program: &str| {
            ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| self.session.is_file(format!("{dir}/{program}").as_bytes()))
        };
        programs.iter().copied().find(|program| has(program))
    }

    /// A user's line of /etc/passwd.
    pub fn user(&self, name: &[u8]) -> Result<User, Failure> {
        let passwd = self.read(b"/etc/passwd")?;
        let fields = |line: &[u8]| line.split(|b| *b == b':').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let line = passwd.split(|b| *b == b'\n').map(fields).find(|fields| fields[0] == name && fields.len() >= 6);
        let found = line.and_then(|fields| Some(User { uid: number(&fields[2])?, gid: number(&fields[3])?, home: fields[5].clone() }));
        found.ok_or_else(|| Failure::new(format!("the guest has no user '{}'", guestfs::show(name))))
    }
}

/// A user of the guest's.
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub home: Vec<u8>,
}

/// A decimal number.
pub fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
