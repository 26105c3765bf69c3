//! `user-account`: people's accounts taken out of a guest, with their homes.

use guestfs::{Ext, FileType};

use crate::common::Failure;
use crate::virt::customize::Context;

/// Numbers of people's accounts, where the guest's login.defs does not tell others.
const PEOPLE: std::ops::RangeInclusive<u32> = 1000..=60000;
/// Files of a line for each user, with its name in front.
const BY_USER: [&str; 4] = ["/etc/passwd", "/etc/shadow", "/etc/subuid", "/etc/subgid"];
/// Files of a line for each group, with members in the last field.
const BY_GROUP: [&str; 2] = ["/etc/group", "/etc/gshadow"];
const MAIL: [&str; 2] = ["/var/spool/mail", "/var/mail"];

/// Whose accounts are meant.
#[derive(Clone, Default)]
pub(super) struct Chosen {
    /// Only these; all people if there is none.
    pub only: Vec<Vec<u8>>,
    /// Not these.
    pub kept: Vec<Vec<u8>>,
}

impl Chosen {
    pub(super) fn is_everybody(&self) -> bool {
        self.only.is_empty() && self.kept.is_empty()
    }

    fn means(&self, name: &[u8]) -> bool {
        let among = |list: &[Vec<u8>]| list.iter().any(|known| known == name);
        (self.only.is_empty() || among(&self.only)) && !among(&self.kept)
    }
}

struct User {
    name: Vec<u8>,
    uid: u32,
    home: Vec<u8>,
}

/// Removes the accounts of people, or of those that are chosen. Accounts of the system stay.
pub(super) fn remove(c: &mut Context<'_>, who: &Chosen) -> Result<(), Failure> {
    let people = people(&c.read_or_empty(b"/etc/login.defs")?);
    let passwd = c.read_or_empty(b"/etc/passwd")?;
    let all: Vec<User> = passwd.split(|b| *b == b'\n').filter_map(user).filter(|user| people.contains(&user.uid)).collect();
    if let Some(unknown) = who.only.iter().find(|name| all.iter().all(|user| user.name != **name)) {
        return Err(Failure::new(format!("the guest has no user '{}' who is a person", guestfs::show(unknown))));
    }
    let gone: Vec<User> = all.into_iter().filter(|user| who.means(&user.name)).collect();
    if gone.is_empty() {
        return Ok(());
    }
    let is_gone = |name: &[u8]| gone.iter().any(|user| user.name == name);
    for file in BY_USER {
        change_lines(c, file, |line| (!is_gone(first_field(line))).then(|| line.to_vec()))?;
    }
    for file in BY_GROUP {
        change_lines(c, file, |line| {
            let members_at = line.iter().rposition(|b| *b == b':').map_or(line.len(), |at| at + 1);
            let members: Vec<&[u8]> = line[members_at..].split(|b| *b == b',').filter(|m| !is_gone(m)).collect();
            // A user's own group goes with the user, unless others are in it.
            let is_own = is_gone(first_field(line)) && members.iter().all(|m| m.is_empty());
            (!is_own).then(|| [&line[..members_at], &members.join(&b","[..])].concat())
        })?;
    }
    for user in &gone {
        // A home that is somebody else's, or the system's, is no home.
        let home = c.session.lstat(&user.home).is_ok_and(|s| s.kind == FileType::Directory && s.uid == user.uid);
        if home && user.home.iter().filter(|b| **b == b'/').count() > 1 {
            c.remove(&user.home)?;
        }
        for folder in MAIL {
            c.remove(&[folder.as_bytes(), b"/", &user.name].concat())?;
        }
    }
    Ok(())
}

fn first_field(line: &[u8]) -> &[u8] {
    line.split(|b| *b == b':').next().unwrap_or_default()
}

fn user(line: &[u8]) -> Option<User> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
    let uid = std::str::from_utf8(fields.get(2)?).ok()?.parse().ok()?;
    let name = fields[0].to_vec();
    let is_name = !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..";
    is_name.then(|| User { name, uid, home: fields.get(5).map(|home| home.to_vec()).unwrap_or_default() })
}

/// What login.defs says are people's numbers.
fn people(login_defs: &[u8]) -> std::ops::RangeInclusive<u32> {
    let text = String::from_utf8_lossy(login_defs).into_owned();
    let number = |name: &str| {
        text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            if words.next() == Some(name) { words.next()?.parse().ok() } else { None }
        })
    };
    number("UID_MIN").unwrap_or(*PEOPLE.start())..=number("UID_MAX").unwrap_or(*PEOPLE.end())
}

/// Keeps of each line of a file what `keep` makes of it.
fn change_lines(c: &mut Context<'_>, file: &str, keep: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Result<(), Failure> {
    if !c.session.is_file(file.as_bytes()) {
        return Ok(());
    }
    let old = c.read(file.as_bytes())?;
    let lines = old.strip_suffix(b"\n").unwrap_or(&old).split(|b| *b == b'\n');
    let new: Vec<u8> = lines.filter_map(keep).flat_map(|line| [line, b"\n".to_vec()].concat()).collect();
    if new != old { c.write(file.as_bytes(), &new) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_by_their_numbers() {
        assert_eq!(people(b""), 1000..=60000);
        assert_eq!(people(b"# UID_MIN 7\nUID_MIN\t500\nUID_MAX 600\n"), 500..=600);
        let ann = user(b"ann:x:1000:1000:Ann:/home/ann:/bin/bash").unwrap();
        assert_eq!((&ann.name[..], ann.uid, &ann.home[..]), (&b"ann"[..], 1000, &b"/home/ann"[..]));
        assert!(user(b"../x:x:1000:1000::/:/bin/sh").is_none() && user(b"").is_none());
        let who = Chosen { only: vec![b"ann".to_vec()], kept: Vec::new() };
        assert!(who.means(b"ann") && !who.means(b"bob") && !who.is_everybody());
    }
}
