//! How often each cluster of a file is referred to.

use std::collections::HashMap;

/// Clusters whose counts lie together.
pub(super) const PAGE: u64 = 4096;

/// Counts in pages, kept only for clusters that something refers to.
#[derive(Default)]
pub(super) struct Counts {
    places: HashMap<u64, usize>,
    pages: Vec<Box<[u32; PAGE as usize]>>,
    /// The page used last, and its place.
    last: Option<(u64, usize)>,
}

impl Counts {
    fn place(&self, page: u64) -> Option<usize> {
        match self.last {
            Some((last, place)) if last == page => Some(place),
            _ => self.places.get(&page).copied(),
        }
    }

    pub fn get(&self, cluster: u64) -> u32 {
        self.page(cluster / PAGE).map_or(0, |page| page[(cluster % PAGE) as usize])
    }

    /// The counts of a page of clusters, if any of them is referred to.
    pub fn page(&self, page: u64) -> Option<&[u32; PAGE as usize]> {
        self.place(page).and_then(|place| self.pages.get(place)).map(|page| &**page)
    }

    fn at(&mut self, cluster: u64) -> &mut u32 {
        let number = cluster / PAGE;
        let place = self.place(number).unwrap_or_else(|| {
            self.pages.push(Box::new([0; PAGE as usize]));
            self.places.insert(number, self.pages.len() - 1);
            self.pages.len() - 1
        });
        self.last = Some((number, place));
        &mut self.pages[place][(cluster % PAGE) as usize]
    }

    /// Counts `times` more references, up to `max` in all; gives how many were beyond that.
    pub fn add(&mut self, cluster: u64, times: u32, max: u32) -> u32 {
        let count = self.at(cluster);
        let fits = times.min(max.saturating_sub(*count));
        *count += fits;
        times - fits
    }

    pub fn drop_one(&mut self, cluster: u64) {
        let count = self.at(cluster);
        *count = count.saturating_sub(1);
    }

    /// The ranges of clusters that hold all that is referred to, ascending.
    pub fn ranges(&self) -> Vec<std::ops::Range<u64>> {
        let mut pages: Vec<u64> = self.places.keys().copied().collect();
        pages.sort_unstable();
        pages.into_iter().map(|page| page * PAGE..(page + 1) * PAGE).collect()
    }

    /// The last cluster that is referred to.
    pub fn last_used(&self) -> Option<u64> {
        self.ranges().into_iter().rev().flat_map(Iterator::rev).find(|cluster| self.get(*cluster) > 0)
    }
}
