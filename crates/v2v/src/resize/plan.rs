//! Where each partition goes: a pure computation.
//!
//! What lies before the first change stays where it is, to the byte. What lies behind it moves, keeps its distance to what lies before
//! it, and starts on the alignment. An extended partition follows its logical ones.

use std::ops::Range;

use imgcore::partition::{self, Guid, NewPartition, Partition, Purpose, Table, TableKind};
use imgcore::size;

use super::Unfit;

const MIB: u64 = 1 << 20;
/// Less room than this at the end gets no partition of its own.
const LEAST_EXTRA: u64 = 10 * MIB;

/// What the user wants.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// New sizes by partition.
    pub sizes: Vec<(u32, u64)>,
    /// The partition that takes what is left over, or gives what is missing.
    pub flexible: Option<(u32, Flexible)>,
    /// Partitions that are not in the new table.
    pub deleted: Vec<u32>,
    /// Whether what is left over becomes a partition.
    pub extra: bool,
    /// Partitions that move start at a multiple of so many bytes.
    pub alignment: u64,
    /// Whether the first one moves to the alignment as well.
    pub align_first: bool,
}

/// What a partition whose size is not said does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Flexible {
    Expand,
    Shrink,
}

/// A partition before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its old number; 0 for a disk without partitions.
    pub number: u32,
    /// Its new one: logical partitions behind a deleted one move up.
    pub new_number: u32,
    /// Its bytes on the source.
    pub old: Range<u64>,
    /// Its bytes on the target.
    pub new: Range<u64>,
    /// Whether it only holds others.
    pub is_extended: bool,
}

impl Piece {
    /// Its bytes on the source.
    pub fn old_len(&self) -> u64 {
        self.old.end - self.old.start
    }

    /// Its bytes on the target.
    pub fn new_len(&self) -> u64 {
        self.new.end - self.new.start
    }
}

/// The new disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is kept, by old number.
    pub pieces: Vec<Piece>,
    /// The new table, if there was one.
    pub table: Option<Table>,
    /// A new partition at the end.
    pub extra: Option<Range<u64>>,
    /// Bytes at the end that belong to no partition.
    pub surplus: u64,
}

/// A partition in the order of the disk.
#[derive(Clone, Debug)]
struct Node {
    number: u32,
    old: Range<u64>,
    deleted: bool,
    /// The logical partitions of an extended one.
    inside: Option<Vec<Node>>,
}

/// A disk without a table: its one piece.
pub fn whole_disk(old: u64, new: u64, wishes: &Wishes) -> Result<Plan, Unfit> {
    if let Some(number) =
        wishes.sizes.iter().map(|(n, _)| *n).chain(wishes.flexible.map(|f| f.0)).chain(wishes.deleted.iter().copied()).find(|n| *n != 0)
    {
        return Err(
            Unfit::new(format!("there is no partition {number}: the disk has no partition table")).hint("call the whole disk /dev/sda")
        );
    }
    if !wishes.deleted.is_empty() {
        return Err(Unfit::new("the whole disk cannot be deleted"));
    }
    let len = match (wishes.flexible, wishes.sizes.first()) {
        (Some((_, Flexible::Expand)), _) if new < old => return Err(too_large(old - new)),
        (Some((_, Flexible::Shrink)), _) if new >= old => return Err(nothing_to_shrink()),
        (Some(_), _) => new,
        (None, Some((_, len))) => *len,
        (None, None) => old,
    };
    let surplus = new.checked_sub(len).ok_or_else(|| too_large(len - new))?;
    let piece = Piece { number: 0, new_number: 0, old: 0..old, new: 0..len, is_extended: false };
    Ok(Plan { pieces: vec![piece], table: None, extra: None, surplus })
}

fn too_large(deficit: u64) -> Unfit {
    Unfit::new(format!("the output is too small by {}", size::human(deficit)))
        .hint("make the output larger, or name a partition that may lose as much with --shrink")
}

fn nothing_to_shrink() -> Unfit {
    Unfit::new("there is nothing to shrink: all fits into the output as it is").hint("--resize PART=SIZE makes a partition smaller")
}

/// Lays out the partitions of `table` on a disk of `new_size` bytes.
pub fn compute(table: &Table, new_size: u64, wishes: &Wishes, random: [u8; 16]) -> Result<Plan, Unfit> {
    let nodes = tree(table, &wishes.deleted)?;
    let known = |number: u32| table.partitions.iter().any(|p| p.number == number);
    let named = wishes.sizes.iter().map(|(n, _)| *n).chain(wishes.flexible.map(|f| f.0)).chain(wishes.deleted.iter().copied());
    if let Some(number) = named.into_iter().find(|n| !known(*n)) {
        return Err(no_partition(number, table));
    }
    let room = partition::room(&Table { partitions: Vec::new(), ..table.clone() }, new_size)?;
    let layout = Layout { table, wishes, nodes: &nodes };
    let mut placed = layout.place(None)?;
    if let Some((number, way)) = wishes.flexible {
        placed = layout.fit(number, way, room.end)?;
    }
    let end = end_of(&placed);
    let surplus = room.end.checked_sub(end).ok_or_else(|| too_large(end - room.end))?;

    let mut new_table = layout.table_of(&placed);
    let start = end.next_multiple_of(wishes.alignment.max(MIB));
    let extra = start..room.end / wishes.alignment * wishes.alignment;
    let wanted = wishes.extra && wishes.flexible.is_none() && extra.end.saturating_sub(extra.start) >= LEAST_EXTRA;
    let number = free_number(&new_table).filter(|_| wanted);
    if let Some(number) = number {
        let (len, guid) = (extra.end - extra.start, Guid::from_random(random));
        let new = NewPartition { number, start, len, purpose: Purpose::Linux, bootable: false, guid };
        new_table.partitions.push(new.partition(table.kind)?);
    }
    let extra = number.map(|_| extra);
    let surplus = if extra.is_some() { 0 } else { surplus };
    Ok(Plan { pieces: placed, table: Some(new_table), extra, surplus })
}

fn no_partition(number: u32, table: &Table) -> Unfit {
    let there: Vec<String> = table.partitions.iter().map(|p| format!("/dev/sda{}", p.number)).collect();
    let what = if number == 0 { "the disk has partitions: name one of them".into() } else { format!("there is no partition {number}") };
    Unfit::new(what).hint(format!("there are {}", there.join(", ")))
}

/// The number for one more partition, if the table has room.
fn free_number(table: &Table) -> Option<u32> {
    let used = |number: &u32| table.partitions.iter().all(|p| p.number != *number);
    match table.kind {
        TableKind::Mbr => (1..=4).find(used),
        TableKind::Gpt => (1..=128).find(used),
    }
}

/// The partitions in the order of the disk, the logical ones in the extended ones.
fn tree(table: &Table, deleted: &[u32]) -> Result<Vec<Node>, Unfit> {
    let node = |p: &Partition| Node {
        number: p.number,
        old: p.start..p.end(),
        deleted: deleted.contains(&p.number),
        inside: p.kind.is_extended().then(Vec::new),
    };
    let mut top: Vec<Node> = table.partitions.iter().filter(|p| !p.is_logical()).map(node).collect();
    for logical in table.partitions.iter().filter(|p| p.is_logical()) {
        let holder = top.iter_mut().find(|n| n.inside.is_some() && n.old.start < logical.start && logical.end() <= n.old.end);
        let holder = holder.ok_or_else(|| Unfit::new(format!("the logical partition {} lies in no extended one", logical.number)))?;
        let node = Node { deleted: holder.deleted || deleted.contains(&logical.number), ..node(logical) };
        holder.inside.get_or_insert_default().push(node);
    }
    let mut lists = vec![&mut top];
    while let Some(list) = lists.pop() {
        list.sort_by_key(|n| n.old.start);
        if let Some((a, b)) = list.iter().zip(list.iter().skip(1)).find(|(a, b)| a.old.end > b.old.start) {
            return Err(Unfit::new(format!("the partitions {} and {} overlap: the disk cannot be resized", a.number, b.number)));
        }
        lists.extend(list.iter_mut().filter_map(|n| n.inside.as_mut()));
    }
    Ok(top)
}

struct Layout<'a> {
    table: &'a Table,
    wishes: &'a Wishes,
    nodes: &'a [Node],
}

fn end_of(placed: &[Piece]) -> u64 {
    placed.iter().map(|p| p.new.end).max().unwrap_or(0)
}

impl Layout<'_> {
    fn wanted(&self, number: u32, flexible: Option<(u32, u64)>) -> Option<u64> {
        let mut explicit = self.wishes.sizes.iter().copied().chain(flexible);
        explicit.rfind(|(n, _)| *n == number).map(|(_, len)| len)
    }

    /// All partitions, where one may have a size that no wish gives it.
    fn place(&self, flexible: Option<(u32, u64)>) -> Result<Vec<Piece>, Unfit> {
        let mut placed = Vec::new();
        self.place_list(self.nodes, 0, 0, flexible, &mut placed)?;
        placed.sort_by_key(|p| p.number);
        let logical = placed.iter_mut().filter(|p| p.number > 4 && self.table.kind == TableKind::Mbr);
        for (number, piece) in (5..).zip(logical) {
            piece.new_number = number;
        }
        Ok(placed)
    }

    /// Places what lies in one row, behind what ended at `old_end` and ends at `new_end`. Gives the new end.
    fn place_list(
        &self,
        nodes: &[Node],
        mut old_end: u64,
        mut new_end: u64,
        flexible: Option<(u32, u64)>,
        placed: &mut Vec<Piece>,
    ) -> Result<u64, Unfit> {
        let too_far = || Unfit::new("the partitions would reach past what a disk can have");
        let unit = self.wishes.alignment.max(self.table.sector_size);
        // Where the first one begins that is deleted: the boot loader before it keeps its room.
        let mut least = None;
        for node in nodes {
            let gap = node.old.start - old_end;
            old_end = node.old.end;
            let unmoved = new_end.checked_add(gap).ok_or_else(too_far)?;
            if node.deleted {
                least = least.or(Some(unmoved));
                continue;
            }
            let unmoved = unmoved.max(least.unwrap_or(0));
            let first = placed.is_empty() && self.wishes.align_first;
            // What was aligned to a MiB stays so.
            let unit = if node.old.start.is_multiple_of(MIB) && MIB.is_multiple_of(unit) { MIB } else { unit };
            let start =
                if unmoved == node.old.start && !first { unmoved } else { unmoved.checked_next_multiple_of(unit).ok_or_else(too_far)? };
            let place = placed.len();
            placed.push(Piece {
                number: node.number,
                new_number: node.number,
                old: node.old.clone(),
                new: start..start,
                is_extended: node.inside.is_some(),
            });
            let inner_end = match &node.inside {
                Some(inside) => self.place_list(inside, node.old.start, start, flexible, placed)?,
                None => start,
            };
            let wanted = self.wanted(node.number, flexible);
            let last_old = node.inside.iter().flatten().filter(|n| !n.deleted).map(|n| n.old.end).max();
            let end = match (wanted, last_old) {
                (Some(len), _) => len.checked_next_multiple_of(self.table.sector_size).and_then(|len| start.checked_add(len)),
                // As much behind the last logical partition as there was.
                (None, Some(last)) => inner_end.checked_add(node.old.end - last),
                (None, None) => start.checked_add(node.old.end - node.old.start),
            };
            let end = end.ok_or_else(too_far)?;
            if end < inner_end {
                let missing = size::human(inner_end - end);
                return Err(Unfit::new(format!(
                    "the extended partition /dev/sda{} is too small for what is in it by {missing}",
                    node.number
                )));
            }
            placed[place].new = start..end;
            new_end = end;
        }
        Ok(new_end)
    }

    /// Gives one partition what is left over up to `limit`, or takes from it what is missing.
    fn fit(&self, number: u32, way: Flexible, limit: u64) -> Result<Vec<Piece>, Unfit> {
        let placed = self.place(None)?;
        let own = placed.iter().find(|p| p.number == number).ok_or_else(|| Unfit::new(format!("partition {number} is deleted")))?;
        let end = end_of(&placed);
        match way {
            Flexible::Expand if end > limit => return Err(too_large(end - limit)),
            Flexible::Shrink if end <= limit => return Err(nothing_to_shrink()),
            _ => {}
        }
        let unit = self.wishes.alignment.max(self.table.sector_size);
        let mut len = (own.new_len().saturating_add(limit)).saturating_sub(end) / unit * unit;
        // What moves behind it is aligned, and may so take a little more than was counted.
        while len > 0 {
            let placed = self.place(Some((number, len)))?;
            let over = end_of(&placed).saturating_sub(limit);
            if over == 0 {
                let smaller = placed.iter().find(|p| p.number == number).is_some_and(|p| p.new_len() < own.new_len());
                // No room for a whole unit more: as it was.
                return if way == Flexible::Expand && smaller { self.place(None) } else { Ok(placed) };
            }
            len = len.saturating_sub(over.next_multiple_of(unit));
        }
        Err(Unfit::new(format!("partition {number} is too small to make room for all others: {} are missing", size::human(end - limit))))
    }

    /// The table with the partitions where they are placed.
    fn table_of(&self, placed: &[Piece]) -> Table {
        let moved = |p: &Partition| {
            let piece = placed.iter().find(|piece| piece.number == p.number)?;
            Some(Partition { number: piece.new_number, start: piece.new.start, len: piece.new_len(), ..p.clone() })
        };
        Table { partitions: self.table.partitions.iter().filter_map(moved).collect(), ..self.table.clone() }
    }
}

#[cfg(test)]
mod tests {
    use imgcore::partition::PartitionType;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn part(number: u32, start: u64, len: u64, kind: u8) -> Partition {
        let new = NewPartition { number, start, len, purpose: Purpose::Linux, bootable: false, guid: Guid::default() };
        Partition { kind: PartitionType::Mbr(kind), ..new.partition(TableKind::Mbr).unwrap() }
    }

    fn mbr(parts: &[(u32, u64, u64, u8)]) -> Table {
        let parts = parts.iter().map(|(n, start, len, kind)| part(*n, start * MIB, len * MIB, *kind)).collect();
        Table::new(TableKind::Mbr, "1a2b3c4d".into(), parts)
    }

    fn wishes() -> Wishes {
        Wishes { alignment: 64 << 10, extra: true, ..Wishes::default() }
    }

    fn rows(plan: &Plan) -> Vec<(u32, u64, u64)> {
        plan.table.as_ref().unwrap().partitions.iter().map(|p| (p.number, p.start / MIB, p.len / MIB)).collect()
    }

    fn go(table: &Table, new: u64, wishes: &Wishes) -> Result<Plan, Unfit> {
        compute(table, new, wishes, [1; 16])
    }

    #[test]
    fn what_lies_before_stays_and_what_lies_behind_moves() {
        let table = mbr(&[(1, 1, 100, 0x83), (2, 101, 200, 0x82), (3, 305, 100, 0x83)]);
        let plan = go(&table, GIB, &Wishes { flexible: Some((2, Flexible::Expand)), ..wishes() }).unwrap();
        assert_eq!(rows(&plan), [(1, 1, 100), (2, 101, 1024 - 405 + 200), (3, 305 + 619, 100)]);
        assert_eq!(plan.surplus, 0);
        let plan = go(&table, GIB, &Wishes { sizes: vec![(1, 150 * MIB)], ..wishes() }).unwrap();
        assert_eq!(rows(&plan), [(1, 1, 150), (2, 151, 200), (3, 355, 100), (4, 455, 569)]);
        let plan = go(&table, 300 * MIB, &Wishes { flexible: Some((2, Flexible::Shrink)), ..wishes() }).unwrap();
        assert_eq!(rows(&plan), [(1, 1, 100), (2, 101, 95), (3, 200, 100)]);
        let plan = go(&table, 406 * MIB, &Wishes { deleted: vec![2], extra: false, ..wishes() }).unwrap();
        assert_eq!(rows(&plan), [(1, 1, 100), (3, 105, 100)]);
        let plan = go(&table, 406 * MIB, &Wishes { deleted: vec![1, 2], extra: false, ..wishes() }).unwrap();
        assert_eq!(rows(&plan), [(3, 4, 100)]);
    }

    #[test]
    fn an_extended_partition_follows_its_logical_ones() {
        let table = mbr(&[(1, 1, 100, 0x83), (2, 101, 402, 5), (5, 102, 200, 0x83), (6, 303, 200, 0x82), (3, 503, 7, 0x83)]);
        let plan = go(&table, GIB, &Wishes { flexible: Some((5, Flexible::Expand)), ..wishes() }).unwrap();
        let more = 1024 - 510;
        assert_eq!(rows(&plan), [(1, 1, 100), (2, 101, 402 + more), (5, 102, 200 + more), (6, 303 + more, 200), (3, 503 + more, 7)]);
        let plan = go(&table, GIB, &Wishes { sizes: vec![(1, 200 * MIB)], flexible: Some((6, Flexible::Expand)), ..wishes() }).unwrap();
        assert_eq!(rows(&plan), [(1, 1, 200), (2, 201, 816), (5, 202, 200), (6, 403, 614), (3, 1017, 7)]);
        let plan = go(&table, GIB, &Wishes { deleted: vec![5], extra: false, ..wishes() }).unwrap();
        assert_eq!(rows(&plan), [(1, 1, 100), (2, 101, 201), (5, 102, 200), (3, 302, 7)]);
        let plan = go(&table, GIB, &Wishes { deleted: vec![2], extra: false, ..wishes() }).unwrap();
        assert_eq!(rows(&plan), [(1, 1, 100), (3, 101, 7)]);
        assert!(go(&table, GIB, &Wishes { sizes: vec![(2, 300 * MIB)], ..wishes() }).is_err());
        let grown = go(&table, GIB, &Wishes { flexible: Some((2, Flexible::Expand)), ..wishes() }).unwrap();
        assert_eq!(rows(&grown), [(1, 1, 100), (2, 101, 402 + more), (5, 102, 200), (6, 303, 200), (3, 503 + more, 7)]);
    }

    #[test]
    fn a_gpt_keeps_room_for_its_backup() {
        let parts = [(1, MIB, 99 * MIB), (7, 100 * MIB, 100 * MIB)];
        let parts = parts.map(|(n, start, len)| Partition { kind: PartitionType::Gpt(Guid::default()), ..part(n, start, len, 0) });
        let table = Table::new(TableKind::Gpt, Guid::default().to_string(), parts.into());
        let plan = go(&table, GIB, &Wishes { flexible: Some((7, Flexible::Expand)), ..wishes() }).unwrap();
        let last = &plan.table.as_ref().unwrap().partitions[1];
        assert_eq!((last.number, last.start, last.end()), (7, 100 * MIB, GIB - (64 << 10)));
        let plan = go(&table, GIB, &wishes()).unwrap();
        assert_eq!(rows(&plan)[2], (2, 200, 823));
        assert_eq!(plan.extra, Some(200 * MIB..GIB - (64 << 10)));
    }

    #[test]
    fn crooked_partitions_stay_until_they_must_move() {
        let sector = |number, start: u64, len: u64| part(number, start * 512, len * 512, 0x83);
        let table = Table::new(TableKind::Mbr, "0".into(), vec![sector(1, 63, 20_000), sector(2, 20_063, 30_001)]);
        let plan = go(&table, GIB, &Wishes { flexible: Some((2, Flexible::Expand)), ..wishes() }).unwrap();
        let new: Vec<u64> = plan.pieces.iter().map(|p| p.new.start / 512).collect();
        assert_eq!(new, [63, 20_063]);
        let plan = go(&table, GIB, &Wishes { flexible: Some((1, Flexible::Expand)), ..wishes() }).unwrap();
        assert_eq!((plan.pieces[0].new.start, plan.pieces[1].new.start % (64 << 10)), (63 * 512, 0));
        assert!(plan.pieces[1].new.end <= GIB && plan.pieces[1].new_len() == 30_001 * 512);
        let plan = go(&table, GIB, &Wishes { align_first: true, ..wishes() }).unwrap();
        assert_eq!(plan.pieces[0].new.start, 64 << 10);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let table = mbr(&[(1, 1, 100, 0x83), (2, 101, 200, 0x82)]);
        let expand = |n| Wishes { flexible: Some((n, Flexible::Expand)), ..wishes() };
        let shrink = |n| Wishes { flexible: Some((n, Flexible::Shrink)), ..wishes() };
        for (size, wishes, says) in [
            (GIB, expand(3), "there is no partition 3"),
            (GIB, expand(0), "the disk has partitions"),
            (200 * MIB, expand(1), "too small by 101 MiB"),
            (200 * MIB, wishes(), "too small by 101 MiB"),
            (GIB, shrink(2), "nothing to shrink"),
            (50 * MIB, shrink(2), "too small to make room"),
            (GIB, Wishes { deleted: vec![1], ..expand(1) }, "is deleted"),
            (GIB, Wishes { sizes: vec![(1, u64::MAX)], ..wishes() }, "past what a disk can have"),
        ] {
            let message = go(&table, size, &wishes).unwrap_err().message;
            assert!(message.contains(says), "{message}");
        }
        assert!(go(&mbr(&[(1, 1, 100, 0x83), (2, 50, 200, 0x82)]), GIB, &wishes()).is_err());
        assert!(whole_disk(MIB, 2 * MIB, &expand(1)).is_err());
        assert_eq!(whole_disk(MIB, 2 * MIB, &expand(0)).unwrap().pieces[0].new, 0..2 * MIB);
        assert!(whole_disk(2 * MIB, MIB, &expand(0)).is_err() && whole_disk(2 * MIB, MIB, &wishes()).is_err());
    }
}
