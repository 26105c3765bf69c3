//! A guest in memory, for tests of staging, steps and the pipeline.

use std::collections::BTreeMap;
use std::io::Read;

use guestfs::engine::{Command, GuestExec, Output, Session, Terminal};
use guestfs::{Attributes, DirEntry, Error, FileType, GuestFs, GuestFsMut, Result, Stat, StatFs, Time};

use crate::layout::{Layout, Table, TargetDisk, Volume};
use crate::source::{Boot, Nic, Policy, Source, SourceDisk};
use crate::stack::Mounted;
use crate::staged::{Staged, path};
use crate::step::{Context, Options, Step};

#[derive(Clone, Debug)]
struct Node {
    kind: FileType,
    data: Vec<u8>,
    rdev: (u32, u32),
    attributes: Attributes,
    times: (Time, Time),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree of files in memory. As a [`Session`] it records the commands that it is asked to run.
#[derive(Clone, Default)]
pub(crate) struct MemFs {
    nodes: BTreeMap<Vec<u8>, Node>,
    /// The commands that were run, in order.
    pub ran: Vec<Command>,
    /// The status that commands end with.
    pub status: i32,
    /// Free blocks of 4096 bytes.
    pub free_blocks: u64,
}

impl MemFs {
    pub fn new() -> Self {
        let mut fs = MemFs { free_blocks: 1 << 19, ..MemFs::default() };
        fs.nodes.insert(b"/".to_vec(), Node::new(FileType::Directory, Attributes::root(0o755)));
        fs
    }

    /// Adds a file, with the directories above it.
    pub fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let canonical = self.make_parents(path);
        let mut node = Node::new(FileType::Regular, Attributes::root(0o644));
        node.data = content.as_ref().to_vec();
        self.nodes.insert(canonical, node);
        self
    }

    /// Adds a directory, with those above it.
    pub fn dir(mut self, path: &str) -> Self {
        let canonical = self.make_parents(path);
        self.nodes.insert(canonical, Node::new(FileType::Directory, Attributes::root(0o755)));
        self
    }

    /// Adds a symbolic link, with the directories above it.
    pub fn link_to(mut self, path: &str, target: &str) -> Self {
        let canonical = self.make_parents(path);
        let mut node = Node::new(FileType::Symlink, Attributes::root(0o777));
        node.data = target.as_bytes().to_vec();
        self.nodes.insert(canonical, node);
        self
    }

    fn make_parents(&mut self, path: &str) -> Vec<u8> {
        let canonical = self.resolve(path.as_bytes(), false).expect("test path");
        let mut up = canonical.clone();
        while let Some(parent) = path::parent(&up).map(<[u8]>::to_vec) {
            self.nodes.entry(parent.clone()).or_insert_with(|| Node::new(FileType::Directory, Attributes::root(0o755)));
            up = parent;
        }
        canonical
    }

    fn resolve(&self, path: &[u8], follow: bool) -> Result<Vec<u8>> {
        path::resolve(path, follow, &|p| Ok(self.nodes.get(p).filter(|n| n.kind == FileType::Symlink).map(|n| n.data.clone())))
    }

    fn get(&self, path: &[u8], follow: bool) -> Result<(&Node, Vec<u8>)> {
        let canonical = self.resolve(path, follow)?;
        self.nodes.get(&canonical).map(|n| (n, canonical)).ok_or_else(|| Error::NotFound(path.to_vec()))
    }

    fn get_mut(&mut self, path: &[u8]) -> Result<&mut Node> {
        let canonical = self.resolve(path, false)?;
        self.nodes.get_mut(&canonical).ok_or_else(|| Error::NotFound(path.to_vec()))
    }

    fn add(&mut self, path: &[u8], node: Node) -> Result<()> {
        let canonical = self.resolve(path, false)?;
        let parent = path::parent(&canonical).expect("not the root");
        if self.nodes.get(parent).is_none_or(|n| n.kind != FileType::Directory) {
            return Err(Error::NotFound(parent.to_vec()));
        }
        if self.nodes.contains_key(&canonical) {
            return Err(Error::Guest { path: canonical, action: "create", what: "the file exists".into() });
        }
        self.nodes.insert(canonical, node);
        Ok(())
    }

    fn stat_of(&self, node: &Node, path: &[u8]) -> Stat {
        Stat {
            kind: node.kind,
            mode: node.attributes.mode,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            size: node.data.len() as u64,
            nlink: 1,
            ino: self.nodes.range(..path.to_vec()).count() as u64 + 2,
            dev: 1,
            rdev: node.rdev,
            blocks: node.data.len().div_ceil(512) as u64,
            atime: node.times.0,
            mtime: node.times.1,
            ctime: node.times.1,
        }
    }
}

impl Node {
    fn new(kind: FileType, attributes: Attributes) -> Self {
        Node { kind, data: Vec::new(), rdev: (0, 0), attributes, times: Default::default(), xattrs: BTreeMap::new() }
    }
}

impl GuestFs for MemFs {
    fn lstat(&self, path: &[u8]) -> Result<Stat> {
        self.get(path, false).map(|(n, p)| self.stat_of(n, &p))
    }

    fn stat(&self, path: &[u8]) -> Result<Stat> {
        self.get(path, true).map(|(n, p)| self.stat_of(n, &p))
    }

    fn read_dir(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        let (node, dir) = self.get(path, true)?;
        if node.kind != FileType::Directory {
            return Err(Error::WrongType { path: path.to_vec(), what: "not a directory" });
        }
        let prefix = path::join(&dir, b"");
        let children = self.nodes.iter().filter_map(|(p, n)| {
            let name = p.strip_prefix(&prefix[..]).filter(|n| !n.is_empty() && !n.contains(&b'/'))?;
            Some(DirEntry { name: name.to_vec(), kind: n.kind, ino: self.stat_of(n, p).ino })
        });
        Ok(children.collect())
    }

    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        let (node, _) = self.get(path, false)?;
        if node.kind != FileType::Symlink {
            return Err(Error::WrongType { path: path.to_vec(), what: "not a symbolic link" });
        }
        Ok(node.data.clone())
    }

    fn read_at(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (node, _) = self.get(path, true)?;
        if node.kind != FileType::Regular {
            return Err(Error::WrongType { path: path.to_vec(), what: "not a regular file" });
        }
        let rest = node.data.get(offset as usize..).unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn xattrs(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(self.get(path, false)?.0.xattrs.clone().into_iter().collect())
    }

    fn statfs(&self, _path: &[u8]) -> Result<StatFs> {
        Ok(StatFs {
            block_size: 4096,
            blocks: 1 << 20,
            blocks_free: self.free_blocks,
            blocks_available: self.free_blocks,
            files: 1 << 16,
            files_free: 1 << 15,
        })
    }
}

impl GuestFsMut for MemFs {
    fn write(&mut self, path: &[u8], content: &mut dyn Read, attributes: Option<Attributes>) -> Result<()> {
        let mut data = Vec::new();
        content.read_to_end(&mut data).expect("test content");
        let canonical = self.resolve(path, true)?;
        match self.nodes.get_mut(&canonical) {
            Some(node) => {
                node.data = data;
                node.attributes = attributes.unwrap_or(node.attributes);
                Ok(())
            }
            None => {
                let mut node = Node::new(FileType::Regular, attributes.unwrap_or(Attributes::root(0o644)));
                node.data = data;
                self.add(&canonical, node)
            }
        }
    }

    fn mkdir(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        self.add(path, Node::new(FileType::Directory, attributes))
    }

    fn symlink(&mut self, target: &[u8], path: &[u8]) -> Result<()> {
        let mut node = Node::new(FileType::Symlink, Attributes::root(0o777));
        node.data = target.to_vec();
        self.add(path, node)
    }

    fn link(&mut self, existing: &[u8], path: &[u8]) -> Result<()> {
        let node = self.get(existing, false)?.0.clone();
        self.add(path, node)
    }

    fn mknod(&mut self, path: &[u8], kind: FileType, rdev: (u32, u32), attributes: Attributes) -> Result<()> {
        let mut node = Node::new(kind, attributes);
        node.rdev = rdev;
        self.add(path, node)
    }

    fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let from = self.resolve(from, false)?;
        let to = self.resolve(to, false)?;
        let node = self.nodes.remove(&from).ok_or(Error::NotFound(from))?;
        self.nodes.insert(to, node);
        Ok(())
    }

    fn remove(&mut self, path: &[u8]) -> Result<()> {
        let canonical = self.resolve(path, false)?;
        self.nodes.remove(&canonical).map(drop).ok_or(Error::NotFound(canonical))
    }

    fn set_attributes(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        self.get_mut(path)?.attributes = attributes;
        Ok(())
    }

    fn set_times(&mut self, path: &[u8], atime: Time, mtime: Time) -> Result<()> {
        self.get_mut(path)?.times = (atime, mtime);
        Ok(())
    }

    fn set_xattr(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
        self.get_mut(path)?.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }
}

impl GuestExec for MemFs {
    fn run(&mut self, command: &Command) -> Result<Output> {
        self.ran.push(command.clone());
        Ok(Output { status: self.status, stdout: Vec::new(), stderr: b"said the command\n".to_vec() })
    }

    fn run_relayed(&mut self, command: &Command, _: std::sync::Arc<dyn guestfs::engine::Relay>) -> Result<Output> {
        self.run(command)
    }

    fn run_tool(&mut self, command: &Command) -> Result<Output> {
        self.run(command)
    }

    fn lend(&mut self, _: &[&str]) -> Result<()> {
        Ok(())
    }

    fn run_on_terminal(&mut self, command: &Command, _: &dyn Terminal) -> Result<i32> {
        Ok(self.run(command)?.status)
    }
}

impl Session for MemFs {
    fn mount(&mut self, _: &str, _: &[u8], _: &str, _: &str) -> Result<()> {
        Ok(())
    }

    fn unmount_all(&mut self) -> Result<()> {
        Ok(())
    }

    fn read_device(&mut self, device: &str, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::NotFound(device.into()))
    }

    fn write_device(&mut self, device: &str, _: u64, _: &[u8]) -> Result<()> {
        Err(Error::NotFound(device.into()))
    }

    fn reread_partitions(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn devices(&mut self) -> Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }

    fn unpack(&mut self, _: &[u8], _: &mut dyn FnMut(&mut dyn guestfs::Unpack) -> Result<()>) -> Result<()> {
        Err(Error::Invalid("no trees are unpacked here".into()))
    }

    fn shutdown(self: Box<Self>) -> Result<()> {
        Ok(())
    }

    fn name_inside(&self, device: &str) -> String {
        device.into()
    }

    fn as_fs(&self) -> &dyn GuestFs {
        self
    }
}

pub(crate) const ROOT_UUID: &str = "5f1f1c2e-0f4d-4c5e-9a57-6f6a86f7d001";
pub(crate) const SWAP_UUID: &str = "0b0d5a0a-7d0e-4a57-8a3e-6f6a86f7d002";

/// A guest as xen-create-image makes it (`xvda2` root, `xvda1` swap), with a partitioned second disk whose partition has no UUID.
pub(crate) fn xen_tools_guest() -> (Source, Layout) {
    let disk = |target: &str| SourceDisk {
        target: target.into(),
        image: None,
        size: 1 << 30,
        read_only: false,
        bootable: false,
        origin: "test".into(),
    };
    let volume = |disk, source: &str, number, filesystem: &str, uuid: Option<&str>| Volume {
        disk,
        source_device: source.into(),
        target_device: source.replace("xvd", "vd"),
        partition: Some(number),
        source_offset: 0,
        target_offset: 1 << 20,
        len: 1 << 30,
        grow: 0,
        filesystem: filesystem.into(),
        uuid: uuid.map(Into::into),
        label: None,
        recreate: filesystem == "swap",
    };
    let source = Source {
        name: "web".into(),
        uuid: None,
        description: String::new(),
        memory_mib: 256,
        vcpus: 1,
        boot: Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: false },
        disks: vec![disk("xvda2"), disk("xvda1"), disk("xvdb")],
        nics: vec![Nic { mac: Some("00:16:3e:00:00:01".into()), ..Nic::default() }],
        local_time: false,
        policy: Policy::default(),
        warnings: Vec::new(),
        origin: "test".into(),
    };
    let root = volume(0, "xvda2", 2, "ext4", Some(ROOT_UUID));
    let swap = volume(1, "xvda1", 1, "swap", Some(SWAP_UUID));
    let data = volume(2, "xvdb1", 1, "", None);
    let layout = Layout {
        disks: vec![
            TargetDisk { device: "vda".into(), size: 3 << 30, table: Table::NewMbr, grown: 0, volumes: vec![root, swap], moved: None },
            TargetDisk { device: "vdb".into(), size: 1 << 30, table: Table::Keep { disk: 2 }, grown: 0, volumes: vec![data], moved: None },
        ],
    };
    (source, layout)
}

/// Runs one step on a guest and hands the context to `check`.
pub(crate) fn run_step(base: &MemFs, step: &Step, check: impl FnOnce(&mut Context<'_>)) {
    run_step_with(base, &Options::default(), step, check);
}

/// As [`run_step`], with options.
pub(crate) fn run_step_with(base: &MemFs, options: &Options, step: &Step, check: impl FnOnce(&mut Context<'_>)) {
    let (source, layout) = xen_tools_guest();
    let mut context = Context::new(&source, &layout, options, Staged::new(base)).expect("context");
    context.run(step).unwrap_or_else(|e| panic!("{e}"));
    check(&mut context);
}

impl Context<'_> {
    /// A file's text, for assertions.
    pub(crate) fn show(&self, path: &str) -> String {
        self.text(path).expect("readable").map(|t| t.to_string()).unwrap_or_else(|| panic!("{path} is missing"))
    }
}

/// The first kilobyte of a kernel image of this release.
pub(crate) fn bzimage(version: &str) -> Vec<u8> {
    let mut image = vec![0u8; 0x400];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    let text = format!("{version} (builder@host) #1 SMP");
    image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
    image
}

/// A filesystem of btrfs of which a subvolume is mounted.
pub fn mounted_subvolume(path: &str, begins_at: &str) -> Mounted {
    Mounted {
        path: path.into(),
        device: "/dev/xvda2".into(),
        filesystem: "btrfs".into(),
        uuid: Some(ROOT_UUID.into()),
        selection: String::new(),
        begins_at: Ok(begins_at.into()),
        layers: Vec::new(),
        bottom: Vec::new(),
        image: Err("not there".into()),
    }
}
