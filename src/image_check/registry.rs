//! Hives of Windows' registry, read-only: keys by their path, values by their name. What a
//! cell says is parsed by the crate `winreg-format`; where cells are, and how many are read, is
//! decided here, because the crates that go through whole hives believe the counts and links
//! that they find. Memory: the piece of the hive that is kept, and the names of one key.

use std::collections::HashMap;

use winreg_format::cells::{CellHeader, CellOffset, RawKeyNode, RawKeyValue, SubkeyIndex};

use super::bytes::{u16_at, u32_at};
use super::ntfs::Content;

/// Pieces in which a hive is read, and how many of them are kept.
const PIECE: usize = 64 << 10;
const MOST_PIECES: usize = 256;
/// Cells that are read of one hive at most.
const MOST_CELLS: u32 = 400_000;
/// Bytes of a cell at most: lists of 65,535 keys fit.
const LARGEST_CELL: u32 = 1 << 20;
/// Keys below one key that are listed.
const MOST_KEYS: usize = 100_000;
/// Values of one key that are looked at.
const MOST_VALUES: u32 = 4096;
/// The header before the cells.
const HEADER: u64 = 4096;

/// A hive.
pub(super) struct Hive<'c> {
    content: &'c mut dyn Content,
    pieces: HashMap<u64, Vec<u8>>,
    cells: u32,
    root: u32,
    /// False if what was written last lies in its logs.
    pub(super) is_whole: bool,
}

/// A key that was found.
pub(super) struct Key {
    node: RawKeyNode,
}

impl<'c> Hive<'c> {
    /// Reads the header.
    pub(super) fn open(content: &'c mut dyn Content) -> Result<Self, String> {
        let mut header = [0; 512];
        content.read_at(0, &mut header)?;
        if !header.starts_with(b"regf") {
            return Err("it is no hive".to_owned());
        }
        let sum = |sum: u32, at: usize| sum ^ u32_at(&header, at * 4);
        let sum = match (0..127).fold(0, sum) {
            0 => 1,
            u32::MAX => u32::MAX - 1,
            sum => sum,
        };
        let whole = sum == u32_at(&header, 508);
        let is_whole = whole && u32_at(&header, 4) == u32_at(&header, 8);
        Ok(Self {
            content,
            pieces: HashMap::new(),
            cells: MOST_CELLS,
            root: u32_at(&header, 36),
            is_whole,
        })
    }

    /// The key that all others are below of.
    pub(super) fn root(&mut self) -> Result<Key, String> {
        self.key(CellOffset(self.root))
    }

    /// A key by its path below another, without regard to case.
    pub(super) fn find(&mut self, from: &Key, path: &str) -> Result<Option<Key>, String> {
        let mut found = Key {
            node: from.node.clone(),
        };
        for name in path.split('\\') {
            match self.child(&found, name)? {
                Some(child) => found = child,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    fn child(&mut self, key: &Key, name: &str) -> Result<Option<Key>, String> {
        for offset in self.offsets(key)? {
            let child = self.key(offset)?;
            if child.name().eq_ignore_ascii_case(name) {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }

    /// All keys right below another.
    pub(super) fn children(&mut self, key: &Key) -> Result<Vec<Key>, String> {
        let offsets = self.offsets(key)?;
        let mut children = Vec::new();
        for offset in offsets {
            children.push(self.key(offset)?);
        }
        Ok(children)
    }

    fn key(&mut self, offset: CellOffset) -> Result<Key, String> {
        let cell = self.cell(offset)?;
        let node = cell.strip_prefix(b"nk").and_then(RawKeyNode::parse);
        let node = node.ok_or_else(|| format!("no key at {offset}"))?;
        Ok(Key { node })
    }

    /// Where the keys right below another are.
    fn offsets(&mut self, key: &Key) -> Result<Vec<CellOffset>, String> {
        let list = key.node.subkeys_list_offset;
        if key.node.subkey_count == 0 || list.is_null() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        // A list of lists has no lists of lists in it.
        let lists = match self.list(list)? {
            SubkeyIndex::RootIndex(lists) => lists,
            leaf => {
                leaf_offsets(&leaf, &mut found);
                Vec::new()
            }
        };
        for list in lists {
            match self.list(list)? {
                SubkeyIndex::RootIndex(_) => return Err("its lists go in a circle".to_owned()),
                leaf => leaf_offsets(&leaf, &mut found),
            }
            if found.len() > MOST_KEYS {
                return Err("a key has too many below it".to_owned());
            }
        }
        Ok(found)
    }

    fn list(&mut self, offset: CellOffset) -> Result<SubkeyIndex, String> {
        let cell = self.cell(offset)?;
        let parsed = match cell.split_at_checked(2) {
            Some((b"lf", rest)) => SubkeyIndex::parse_lf(rest),
            Some((b"lh", rest)) => SubkeyIndex::parse_lh(rest),
            Some((b"li", rest)) => SubkeyIndex::parse_li(rest),
            Some((b"ri", rest)) => SubkeyIndex::parse_ri(rest),
            _ => None,
        };
        parsed.ok_or_else(|| format!("no list of keys at {offset}"))
    }

    /// A number.
    pub(super) fn number(&mut self, key: &Key, name: &str) -> Result<Option<u32>, String> {
        let bytes = self.bytes(key, name)?;
        Ok(bytes
            .filter(|bytes| bytes.len() >= 4)
            .map(|bytes| u32_at(&bytes, 0)))
    }

    /// A text.
    pub(super) fn text(&mut self, key: &Key, name: &str) -> Result<Option<String>, String> {
        Ok(self.texts(key, name)?.into_iter().next())
    }

    /// The texts of a list that are not empty.
    pub(super) fn texts(&mut self, key: &Key, name: &str) -> Result<Vec<String>, String> {
        let bytes = self.bytes(key, name)?.unwrap_or_default();
        let units: Vec<u16> = (0..bytes.len() / 2)
            .map(|at| u16_at(&bytes, at * 2))
            .collect();
        let texts = units.split(|unit| *unit == 0);
        let texts = texts.filter(|text| !text.is_empty());
        Ok(texts.map(String::from_utf16_lossy).collect())
    }

    /// A value's bytes; nothing that we look for is long.
    fn bytes(&mut self, key: &Key, name: &str) -> Result<Option<Vec<u8>>, String> {
        let (count, list) = (key.node.value_count, key.node.values_list_offset);
        if count == 0 || list.is_null() {
            return Ok(None);
        }
        let list = self.cell(list)?;
        let places = list.chunks_exact(4).take(count.min(MOST_VALUES) as usize);
        for place in places {
            let cell = self.cell(CellOffset(u32_at(place, 0)))?;
            let value = cell.strip_prefix(b"vk").and_then(RawKeyValue::parse);
            let value = value.ok_or("a value is none")?;
            if !value.value_name().eq_ignore_ascii_case(name) {
                continue;
            }
            if value.is_resident() {
                return Ok(Some(value.inline_data()));
            }
            let mut data = self.cell(value.data_offset())?;
            data.truncate(value.data_size() as usize);
            return Ok(Some(data));
        }
        Ok(None)
    }

    /// A cell's bytes without its size.
    fn cell(&mut self, offset: CellOffset) -> Result<Vec<u8>, String> {
        self.cells = self.cells.checked_sub(1).ok_or("it has too many cells")?;
        let at = offset.file_offset();
        let mut size = [0; 4];
        self.read_at(at, &mut size)?;
        let header = CellHeader::from_bytes(&size);
        if offset.is_null()
            || !header.is_allocated()
            || !(8..=LARGEST_CELL).contains(&header.size())
        {
            return Err(format!("no cell at {offset}"));
        }
        let mut cell = vec![0; header.size() as usize - 4];
        self.read_at(at + 4, &mut cell)?;
        Ok(cell)
    }

    /// Fills `buffer` from pieces that are kept, and reads those that are not.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        let end = offset.saturating_add(buffer.len() as u64);
        if offset < HEADER || end > self.content.size() {
            return Err("it ends too early".to_owned());
        }
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let (number, within) = (at / PIECE as u64, (at % PIECE as u64) as usize);
            let piece = self.piece(number)?;
            let there = piece.get(within..).filter(|there| !there.is_empty());
            let there = there.ok_or("it ends too early")?;
            let count = rest.len().min(there.len());
            for (into, from) in rest.iter_mut().zip(there) {
                *into = *from;
            }
            done += count;
        }
        Ok(())
    }

    fn piece(&mut self, number: u64) -> Result<&[u8], String> {
        if !self.pieces.contains_key(&number) {
            if self.pieces.len() >= MOST_PIECES {
                self.pieces.clear();
            }
            let start = number * PIECE as u64;
            let size = self.content.size().saturating_sub(start).min(PIECE as u64);
            let mut piece = vec![0; usize::try_from(size).unwrap_or(PIECE)];
            self.content.read_at(start, &mut piece)?;
            self.pieces.insert(number, piece);
        }
        Ok(self.pieces.get(&number).map_or(&[], Vec::as_slice))
    }
}

fn leaf_offsets(leaf: &SubkeyIndex, into: &mut Vec<CellOffset>) {
    match leaf {
        SubkeyIndex::FastLeaf(list) => into.extend(list.iter().map(|one| one.key_offset)),
        SubkeyIndex::HashLeaf(list) => into.extend(list.iter().map(|one| one.key_offset)),
        SubkeyIndex::IndexLeaf(list) => into.extend(list),
        SubkeyIndex::RootIndex(_) => {}
    }
}

impl Key {
    /// Its name.
    pub(super) fn name(&self) -> String {
        self.node.key_name()
    }
}
