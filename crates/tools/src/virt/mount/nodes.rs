//! Which files the kernel knows, by the numbers that it was given for them: as many as it remembers, and no more.

use std::collections::HashMap;

use guestfs::Stat;

/// The number of the root directory, in FUSE.
pub(super) const ROOT: u64 = 1;
/// A number that names no file, for directory entries: as libfuse has it.
const UNKNOWN: u64 = 0xffff_ffff;
/// Bits of an inode number that are kept as they are; above them stands the filesystem.
const INODE_BITS: u32 = 48;
/// From here on numbers are given out where the guest's do not fit.
const MADE_UP: u64 = 1 << 63;

/// A file that the kernel knows.
struct Known<P> {
    place: P,
    key: (u64, u64),
    /// How often it was told of.
    lookups: u64,
}

/// The table of them. Numbers are the guest's inode numbers where they fit, so that `find -inum`, tar and du see hard
/// links for what they are, also after the kernel forgot a file and asked again.
pub(super) struct Nodes<P> {
    known: HashMap<u64, Known<P>>,
    /// Numbers that had to be made up, by filesystem and inode.
    made_up: HashMap<(u64, u64), u64>,
    next: u64,
    /// The filesystems seen, in order.
    devices: Vec<u64>,
}

impl<P: Clone> Nodes<P> {
    /// A table of the root directory, which is never forgotten.
    pub(super) fn new(root: P, stat: &Stat) -> Self {
        let key = (stat.dev, stat.ino);
        let known = HashMap::from([(ROOT, Known { place: root, key, lookups: 1 })]);
        Nodes { known, made_up: HashMap::new(), next: MADE_UP, devices: vec![stat.dev] }
    }

    pub(super) fn place(&self, number: u64) -> Option<P> {
        self.known.get(&number).map(|known| known.place.clone())
    }

    /// How many files are known.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The kernel is told of a file: gives its number.
    pub(super) fn remember(&mut self, place: P, stat: &Stat) -> u64 {
        let key = (stat.dev, stat.ino);
        let number = self.plain_number(key).unwrap_or_else(|| self.make_up(key));
        let known = self.known.entry(number).or_insert(Known { place, key, lookups: 0 });
        known.lookups = known.lookups.saturating_add(1);
        number
    }

    /// The kernel forgot that it was told of a file so many times.
    pub(super) fn forget(&mut self, number: u64, times: u64) {
        let Some(known) = self.known.get_mut(&number).filter(|_| number != ROOT) else { return };
        known.lookups = known.lookups.saturating_sub(times);
        if known.lookups == 0 {
            let key = known.key;
            self.known.remove(&number);
            self.made_up.remove(&key);
        }
    }

    /// The number for an entry of a directory, which does not make the kernel know the file.
    pub(super) fn listed(&self, device: u64, ino: u64) -> u64 {
        let index = self.devices.iter().position(|d| *d == device);
        index.and_then(|index| compose(index, ino)).unwrap_or(UNKNOWN)
    }

    fn plain_number(&mut self, (device, ino): (u64, u64)) -> Option<u64> {
        let index = self.devices.iter().position(|d| *d == device).unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        compose(index, ino)
    }

    fn make_up(&mut self, key: (u64, u64)) -> u64 {
        let next = &mut self.next;
        *self.made_up.entry(key).or_insert_with(|| {
            *next += 1;
            *next
        })
    }
}

fn compose(device: usize, ino: u64) -> Option<u64> {
    let device = u64::try_from(device).ok().filter(|d| *d < 1 << 14)?;
    let number = device << INODE_BITS | ino;
    (ino >> INODE_BITS == 0 && ino > ROOT).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(dev: u64, ino: u64) -> Stat {
        let time = guestfs::Time::default();
        Stat {
            kind: guestfs::FileType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            nlink: 1,
            ino,
            dev,
            rdev: (0, 0),
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
        }
    }

    #[test]
    fn the_table_grows_with_lookups_and_shrinks_with_forgets() {
        let mut nodes = Nodes::new("/", &stat(1, 2));
        let a = nodes.remember("/a", &stat(1, 12));
        assert_eq!((a, nodes.remember("/hard link to a", &stat(1, 12))), (12, 12));
        assert_eq!(nodes.place(a), Some("/a"));
        assert_eq!(nodes.len(), 2);
        nodes.forget(a, 1);
        assert_eq!(nodes.len(), 2);
        nodes.forget(a, 1);
        assert_eq!((nodes.len(), nodes.place(a)), (1, None));
        nodes.forget(ROOT, u64::MAX);
        assert_eq!(nodes.place(ROOT), Some("/"));
        for ino in 100..10_100 {
            nodes.remember("x", &stat(1, ino));
        }
        (100..10_100).for_each(|ino| nodes.forget(ino, 1));
        assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn numbers_of_two_filesystems_and_odd_ones_never_meet() {
        let mut nodes = Nodes::new("/", &stat(7, 2));
        let keys = [(7, 3), (9, 3), (9, 1), (9, 0), (7, u64::MAX), (9, u64::MAX), (7, 1 << 48), (7, 1)];
        let numbers: Vec<u64> = keys.iter().map(|(dev, ino)| nodes.remember("x", &stat(*dev, *ino))).collect();
        let distinct: std::collections::HashSet<_> = numbers.iter().chain([&ROOT]).collect();
        assert_eq!(distinct.len(), keys.len() + 1, "{numbers:?}");
        assert_eq!((nodes.listed(7, 3), nodes.listed(9, 3)), (numbers[0], numbers[1]));
        assert_eq!(nodes.listed(7, u64::MAX), UNKNOWN);
        for (number, _) in numbers.iter().zip(keys) {
            nodes.forget(*number, 1);
        }
        assert!(nodes.made_up.is_empty() && nodes.len() == 1);
    }
}
