//! What a picture of an image shows: its range cut into cells of one size, and what each is made of.

use std::ops::{ControlFlow, Range};

use imgcore::{Extent, ExtentKind, Image, size};

use crate::common::Failure;

/// No cell is smaller: a sector.
const SMALLEST_CELL: u64 = 512;

/// What bytes are, and in which layer of the chain: 0 is the image itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Data(usize),
    Compressed(usize),
    Zero(usize),
    Unallocated,
}

impl Kind {
    fn of(extent: &Extent, layers: usize) -> Kind {
        // A chain has no more layers than it had when it was counted.
        let layer = (extent.depth as usize).min(layers - 1);
        match extent.kind {
            ExtentKind::Data => Kind::Data(layer),
            ExtentKind::Compressed => Kind::Compressed(layer),
            ExtentKind::Zero | ExtentKind::Hole => Kind::Zero(layer),
            ExtentKind::Unallocated => Kind::Unallocated,
        }
    }

    /// Whether bytes are stored.
    pub(super) fn is_stored(self) -> bool {
        matches!(self, Kind::Data(_) | Kind::Compressed(_))
    }
}

/// How many bytes of each kind there are; kinds without bytes are left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares(pub(super) Vec<(Kind, u64)>);

impl Shares {
    fn add(&mut self, kind: Kind, bytes: u64) {
        match self.0.binary_search_by_key(&kind, |(k, _)| *k) {
            Ok(at) => self.0[at].1 += bytes,
            Err(at) => self.0.insert(at, (kind, bytes)),
        }
    }

    /// Bytes of one kind.
    pub(super) fn of(&self, kind: Kind) -> u64 {
        self.0.iter().find(|(k, _)| *k == kind).map_or(0, |(_, bytes)| *bytes)
    }

    /// Bytes of all kinds.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes that are stored.
    pub(super) fn stored(&self) -> u64 {
        self.0.iter().filter(|(kind, _)| kind.is_stored()).map(|(_, bytes)| bytes).sum()
    }

    /// The kind that a cell stands for where it can show but one: what most of the stored bytes are, or else of all.
    pub(super) fn main(&self) -> Kind {
        let most = self.0.iter().max_by_key(|(kind, bytes)| (kind.is_stored(), *bytes));
        most.map_or(Kind::Unallocated, |(kind, _)| *kind)
    }
}

/// One image of the chain.
pub(super) struct Layer {
    pub(super) file: String,
    pub(super) format: &'static str,
}

/// What is to be drawn.
pub(super) struct Picture {
    /// The part of the image that is shown.
    pub(super) range: Range<u64>,
    /// Bytes of a cell; the last one may have less.
    pub(super) cell_size: u64,
    /// Cells in a row.
    pub(super) columns: usize,
    pub(super) cells: Vec<Shares>,
    pub(super) all: Shares,
    /// The chain, the image itself first.
    pub(super) layers: Vec<Layer>,
}

impl Picture {
    /// Looks at `range` of `image`, cut into no more than `rows` rows of cells.
    pub(super) fn of(image: &dyn Image, range: Range<u64>, columns: usize, rows: usize) -> Result<Picture, Failure> {
        let mut layers = Vec::new();
        let mut next = Some(image);
        while let Some(layer) = next {
            let info = layer.info();
            layers.push(Layer { file: info.file, format: info.format });
            next = layer.backing();
        }
        let len = range.end.saturating_sub(range.start);
        let cell_size = len.div_ceil((columns * rows) as u64).next_power_of_two().max(SMALLEST_CELL);
        let mut picture = Picture {
            cell_size,
            columns,
            cells: vec![Shares::default(); len.div_ceil(cell_size) as usize],
            all: Shares::default(),
            layers,
            range,
        };
        if len > 0 {
            image.extents(picture.range.clone(), &mut |extent| {
                picture.add(&extent);
                ControlFlow::Continue(())
            })?;
        }
        Ok(picture)
    }

    fn add(&mut self, extent: &Extent) {
        let kind = Kind::of(extent, self.layers.len());
        self.all.add(kind, extent.len);
        let (mut at, end) = (extent.start - self.range.start, extent.start - self.range.start + extent.len);
        while at < end {
            let cell = at / self.cell_size;
            let stop = end.min((cell + 1) * self.cell_size);
            if let Some(shares) = self.cells.get_mut(cell as usize) {
                shares.add(kind, stop - at);
            }
            at = stop;
        }
    }

    /// The bytes of cells `from..to`.
    pub(super) fn bytes(&self, cells: Range<usize>) -> Range<u64> {
        let at = |cell: usize| (self.range.start + cell as u64 * self.cell_size).min(self.range.end);
        at(cells.start)..at(cells.end)
    }

    /// The picture in one line.
    pub(super) fn summary(&self) -> String {
        let (stored, len) = (self.all.stored(), self.range.end - self.range.start);
        let layers = match self.layers.len() {
            1 => String::new(),
            several => format!(" in {several} layers"),
        };
        let cell = size::human(self.cell_size);
        format!("{}, {} stored ({}){layers}; one cell is {cell}", size::human(len), size::human(stored), percent(stored, len))
    }

    /// Words for one kind.
    pub(super) fn words(&self, kind: Kind) -> String {
        match kind {
            Kind::Data(layer) => format!("data in {}", self.layers[layer].file),
            Kind::Compressed(layer) => format!("compressed in {}", self.layers[layer].file),
            Kind::Zero(layer) => format!("zero in {}", self.layers[layer].file),
            Kind::Unallocated => "unallocated, reads as zero".into(),
        }
    }
}

/// A part in percent, without the appearance of nothing where there is something.
pub(super) fn percent(part: u64, whole: u64) -> String {
    match part as f64 * 100.0 / whole.max(1) as f64 {
        p if part > 0 && p < 0.1 => "< 0.1 %".into(),
        p if part < whole && p > 99.9 => "> 99.9 %".into(),
        p if p < 10.0 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use imgcore::formats::CreateOptions;
    use imgcore::storage::MemStorage;
    use imgcore::{Formats, ImageMut};
    use std::sync::Arc;

    use super::*;

    /// A qcow2 of `size` bytes with 64 KiB of data at 1 MiB, if it reaches so far.
    pub(crate) fn image(size: u64) -> Arc<dyn ImageMut> {
        let storage = Arc::new(MemStorage::new("disk<&>.qcow2", 0));
        let image = Formats::new().driver("qcow2").unwrap().create(storage, size, &CreateOptions::new()).unwrap();
        if size > 3 << 20 {
            image.write_at(&[7; 65536], 1 << 20).unwrap();
        }
        image
    }

    #[test]
    fn every_byte_is_in_one_cell() {
        for (size, cell) in [(1 << 20, 1024), (64 << 20, 64 << 10), (8 << 40, 8 << 30), (4097 << 10, 8192), (512, 512)] {
            let image = image(size);
            let picture = Picture::of(&*image, 0..size, 64, 16).unwrap();
            assert_eq!(picture.cell_size, cell);
            assert_eq!(picture.cells.iter().map(Shares::total).sum::<u64>(), size);
            assert_eq!(picture.all.total(), size);
            let full = &picture.cells[..picture.cells.len() - 1];
            assert!(full.iter().all(|c| c.total() == cell), "{size}");
        }
        assert!(Picture::of(&*image(0), 0..0, 64, 16).unwrap().cells.is_empty());
    }

    #[test]
    fn a_little_data_is_what_a_large_cell_stands_for() {
        let picture = Picture::of(&*image(8 << 40), 0..8 << 40, 64, 16).unwrap();
        assert_eq!(picture.cells[0].main(), Kind::Data(0));
        assert_eq!(picture.cells[0].of(Kind::Data(0)), 65536);
        assert_eq!(picture.cells[1].main(), Kind::Unallocated);
        assert_eq!(picture.summary(), "8 TiB, 64 KiB stored (< 0.1 %); one cell is 8 GiB");
    }
}
