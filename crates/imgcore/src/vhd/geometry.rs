//! Cylinders, heads and sectors of a disk (appendix "CHS Calculation" of the specification).

/// The most sectors that a geometry can tell of; larger disks have this one.
const MAX_SECTORS: u64 = 65535 * 16 * 255;

/// The geometry in a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors_per_track: u8,
}

impl Geometry {
    /// The largest, which stands for all disks that no geometry fits.
    pub const MAX: Geometry = Geometry { cylinders: 65535, heads: 16, sectors_per_track: 255 };

    /// The geometry of a disk of `sectors` sectors. It may hold less than that.
    pub fn of(sectors: u64) -> Self {
        let sectors = sectors.min(MAX_SECTORS);
        let (mut track, mut heads) = (17, 0);
        let mut tracks = sectors / track;
        if sectors >= 65535 * 16 * 63 {
            (track, heads) = (255, 16);
            tracks = sectors / track;
        } else {
            heads = tracks.div_ceil(1024).max(heads).max(4);
            if tracks >= heads * 1024 || heads > 16 {
                (track, heads) = (31, 16);
                tracks = sectors / track;
            }
            if tracks >= heads * 1024 {
                (track, heads) = (63, 16);
                tracks = sectors / track;
            }
        }
        // All three are within bounds because the sectors are.
        Geometry { cylinders: (tracks / heads) as u16, heads: heads as u8, sectors_per_track: track as u8 }
    }

    /// The smallest geometry that holds `sectors` sectors, as far as there is one.
    pub fn holding(sectors: u64) -> Self {
        let sectors = sectors.min(MAX_SECTORS);
        let mut tried = sectors;
        loop {
            let geometry = Geometry::of(tried);
            if geometry.sectors() >= sectors {
                return geometry;
            }
            tried += 1;
        }
    }

    /// How many sectors it holds.
    pub fn sectors(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors_per_track)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_the_specification() {
        let of = |sectors| {
            let g = Geometry::of(sectors);
            (g.cylinders, g.heads, g.sectors_per_track)
        };
        assert_eq!(of(0), (0, 4, 17));
        assert_eq!(of(2048), (30, 4, 17));
        assert_eq!(of(1000 << 11), (2031, 16, 63));
        assert_eq!(of(136_899_993_600 / 512), (65535, 16, 255));
        assert_eq!(of(u64::MAX), (65535, 16, 255));
        assert_eq!(Geometry::holding(1000 << 11).sectors() * 512, 1_048_707_072);
    }
}
