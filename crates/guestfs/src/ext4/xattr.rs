//! Extended attributes: in the inode, in a block of their own, and values in inodes of their own. (ext4
//! documentation, 4.7)

use super::Ext4;
use super::corrupt;
use super::inode::{FLAG_EA_INODE, Inode};
use crate::Result;
use crate::bytes::{le16, le32};

const MAGIC: u32 = 0xea02_0000;
/// Of a value, as the kernel has it.
const VALUE_LIMIT: usize = 64 << 10;
/// Of all values of one file.
const TOTAL_LIMIT: usize = 16 << 20;

/// An attribute as it is stored.
pub(crate) struct Attribute {
    /// Stands for the beginning of the name.
    pub prefix: u8,
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// The attribute in the inode that continues inline data.
pub(crate) fn is_inline_data(attribute: &Attribute) -> bool {
    attribute.prefix == 7 && attribute.name == b"data"
}

/// The attributes in the inode itself.
pub(crate) fn in_inode(fs: &Ext4, inode: &Inode) -> Result<Vec<Attribute>> {
    let tail = inode.tail();
    let mut found = Vec::new();
    if le32(tail, 0) == MAGIC {
        let area = tail.get(4..).unwrap_or_default();
        parse(fs, inode, area, area, &mut found)?;
    }
    Ok(found)
}

/// All attributes, as they are stored.
pub(crate) fn all(fs: &Ext4, inode: &Inode) -> Result<Vec<Attribute>> {
    let mut found = in_inode(fs, inode)?;
    if inode.file_acl != 0 {
        let block = fs.device.block(inode.file_acl)?;
        if le32(&block, 0) != MAGIC {
            return Err(corrupt(format!("inode {}: attribute block {} has magic {:#x}", inode.number, inode.file_acl, le32(&block, 0))));
        }
        parse(fs, inode, block.get(32..).unwrap_or_default(), &block, &mut found)?;
    }
    Ok(found)
}

/// Entries stand at the beginning of `entries`; values are found by their offset in `values`.
fn parse(fs: &Ext4, inode: &Inode, entries: &[u8], values: &[u8], found: &mut Vec<Attribute>) -> Result<()> {
    let bad = |what: String| corrupt(format!("inode {}: extended attribute {what}", inode.number));
    let mut rest = entries;
    let mut total = 0;
    while le32(rest, 0) != 0 {
        let name_len = usize::from(rest[0]);
        let Some(name) = rest.get(16..16 + name_len) else { return Err(bad(format!("name of {name_len} bytes is cut"))) };
        let size = le32(rest, 8) as usize;
        total += size;
        if total > TOTAL_LIMIT {
            return Err(bad(format!("values of {total} bytes")));
        }
        let value_inode = le32(rest, 4);
        let value = if value_inode != 0 {
            in_other_inode(fs, value_inode, size)?
        } else {
            let at = usize::from(le16(rest, 2));
            let end = at.checked_add(size);
            end.and_then(|end| values.get(at..end)).ok_or_else(|| bad(format!("value of {size} bytes at {at} is cut")))?.to_vec()
        };
        found.push(Attribute { prefix: rest[1], name: name.to_vec(), value });
        rest = rest.get((16 + name_len).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

fn in_other_inode(fs: &Ext4, number: u32, size: usize) -> Result<Vec<u8>> {
    let inode = fs.inode(number)?;
    if !inode.has(FLAG_EA_INODE) || inode.size != size as u64 || size > VALUE_LIMIT {
        return Err(corrupt(format!("inode {number} does not hold an extended attribute's {size} bytes")));
    }
    let mut value = vec![0; size];
    let mut done = 0;
    while done < size {
        match fs.read_file(&inode, done as u64, &mut value[done..])? {
            0 => return Err(corrupt(format!("inode {number} ends early"))),
            n => done += n,
        }
    }
    Ok(value)
}

/// The name and value that getxattr(2) gives. `None` for what is the filesystem's own affair.
pub(crate) fn public(attribute: Attribute) -> Option<(Vec<u8>, Vec<u8>)> {
    let prefix: &[u8] = match attribute.prefix {
        1 => b"user.",
        2 => return Some((b"system.posix_acl_access".to_vec(), acl(&attribute.value)?)),
        3 => return Some((b"system.posix_acl_default".to_vec(), acl(&attribute.value)?)),
        4 => b"trusted.",
        6 => b"security.",
        8 => return Some((b"system.richacl".to_vec(), attribute.value)),
        _ => return None,
    };
    Some(([prefix, &attribute.name].concat(), attribute.value))
}

/// From ext4's form of an ACL (version 1, short entries without an id) to the kernel's (version 2).
fn acl(stored: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    if le32(stored, 0) != 1 {
        return None;
    }
    let mut out = 2u32.to_le_bytes().to_vec();
    let mut rest = stored.get(4..)?;
    while !rest.is_empty() {
        let tag = le16(rest, 0);
        out.extend(rest.get(..4)?);
        if tag == USER || tag == GROUP {
            out.extend(rest.get(4..8)?);
            rest = &rest[8..];
        } else {
            out.extend([0xff; 4]);
            rest = &rest[4..];
        }
    }
    Some(out)
}
