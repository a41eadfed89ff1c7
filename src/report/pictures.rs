//! Small pictures in the page: found in the source, made small, and embedded as far as the page has room.
//!
//! JPEGs of one size and quality begin with the same tables, which are half of a small one: pictures for the script are kept as the place
//! of their beginning in a list and the rest ([`Stock`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use serde::Serialize;

use super::inputs::{FindImages, MakeThumbnail};

/// Longest side up to which an image is tiny, pixels.
const TINY: u32 = 64;

/// Images that are in memory at once, encoded as in the source.
const AT_ONCE: usize = 1024;

/// An image that is wanted: split of the source and row id.
pub(super) type Place = (String, String);

/// The small picture of an image: embedded, or a word on why not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) enum Picture {
    /// `tiny` images are shown with hard pixels, since they are enlarged a lot.
    #[serde(rename = "data")]
    Data { uri: String, tiny: bool },
    #[serde(rename = "missing")]
    Missing(&'static str),
}

/// Why there is no picture of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    NotFound,
    NotReadable,
}

/// A small encoded image.
struct Small {
    bytes: Vec<u8>,
    kind: &'static str,
    tiny: bool,
}

/// Pictures by place and longest side.
pub(super) struct Album {
    found: HashMap<(Place, u32), Result<Small, Lack>>,
    /// Bytes that may still be embedded.
    room: usize,
    omitted: usize,
    /// Why no image was found at all, by split.
    reasons: BTreeMap<String, String>,
}

impl Album {
    /// Makes the pictures that are wanted, each with its longest side in pixels.
    pub(super) fn of(wanted: Vec<(Place, u32)>, room: usize, images: &FindImages, thumbnail: &MakeThumbnail) -> Self {
        let mut found = HashMap::new();
        let mut reasons = BTreeMap::new();
        if room == 0 {
            return Self { found, room, omitted: 0, reasons };
        }
        let mut splits: BTreeMap<String, BTreeMap<String, HashSet<u32>>> = BTreeMap::new();
        for ((split, id), side) in wanted {
            splits.entry(split).or_default().entry(id).or_default().insert(side);
        }
        for (split, sides) in splits {
            let ids: Vec<String> = sides.keys().cloned().collect();
            for ids in ids.chunks(AT_ONCE) {
                let encoded = images(&split, ids).unwrap_or_else(|reason| {
                    reasons.insert(split.clone(), reason);
                    HashMap::new()
                });
                let small = |id: &String| -> Vec<((Place, u32), Result<Small, Lack>)> {
                    let make = |&side: &u32| {
                        let small = encoded.get(id).ok_or(Lack::NotFound);
                        let small = small.and_then(|image| Small::of(image, side, thumbnail).ok_or(Lack::NotReadable));
                        (((split.clone(), id.clone()), side), small)
                    };
                    sides[id].iter().map(make).collect()
                };
                found.extend(ids.par_iter().map(small).collect::<Vec<_>>().into_iter().flatten());
                if reasons.contains_key(&split) {
                    break;
                }
            }
        }
        Self { found, room, omitted: 0, reasons }
    }

    /// A picture for the page itself.
    pub(super) fn picture(&mut self, place: &Place, side: u32) -> Picture {
        match self.found.get(&(place.clone(), side)) {
            Some(Ok(small)) => {
                let uri = format!("data:{};base64,{}", small.kind, STANDARD.encode(&small.bytes));
                if uri.len() > self.room {
                    self.omitted += 1;
                    return Picture::Missing("left out: page full");
                }
                self.room -= uri.len();
                Picture::Data { uri, tiny: small.tiny }
            }
            Some(Err(Lack::NotReadable)) => Picture::Missing("image not readable"),
            _ => Picture::Missing("no picture"),
        }
    }

    /// Puts a picture into the stock for the script; its number there.
    pub(super) fn put(&mut self, stock: &mut Stock, place: &Place, side: u32) -> Option<usize> {
        if let Some(at) = stock.find(place, side) {
            return Some(at);
        }
        let key = (place.clone(), side);
        let small = self.found.get(&key)?.as_ref().ok()?;
        let (start, rest) = small.parts();
        let start_uri = format!("data:{};base64,{}", small.kind, STANDARD.encode(start));
        let rest = STANDARD.encode(rest);
        // What is around each in JSON.
        let size = rest.len() + 12 + if stock.places.contains_key(&start_uri) { 0 } else { start_uri.len() + 3 };
        if size > self.room {
            self.omitted += 1;
            return None;
        }
        self.room -= size;
        let next = stock.starts.len();
        let begins = *stock.places.entry(start_uri.clone()).or_insert(next);
        if begins == next {
            stock.starts.push(start_uri);
        }
        stock.rests.push((begins, rest));
        stock.known.insert(key, stock.rests.len() - 1);
        Some(stock.rests.len() - 1)
    }

    /// What a reader should know of the pictures that are missing.
    pub(super) fn notes(&self, source: &str, page_bytes: usize) -> Vec<String> {
        let mut notes: Vec<String> = self.reasons.values().collect::<HashSet<_>>().into_iter().cloned().collect();
        notes.sort();
        let lacking = |lack: Lack| {
            let of = |(key, small): (&(Place, u32), &Result<Small, Lack>)| {
                (small.as_ref().err() == Some(&lack) && !self.reasons.contains_key(&key.0.0)).then(|| key.0.clone())
            };
            self.found.iter().filter_map(of).collect::<HashSet<_>>().len()
        };
        let of = self.found.keys().map(|(place, _)| place).collect::<HashSet<_>>().len();
        let (lost, unreadable) = (lacking(Lack::NotFound), lacking(Lack::NotReadable));
        if lost > 0 {
            notes.push(format!(
                "{lost} of {of} images were not found in the source ({source}): were they moved or deleted since the features were extracted?"
            ));
        }
        if unreadable > 0 {
            notes.push(format!(
                "{unreadable} of {of} images cannot be read any more: were they changed since the features were extracted?"
            ));
        }
        if self.omitted > 0 {
            notes.push(format!(
                "{} pictures were left out to keep the page under {} MiB (tlpipe report --thumbnails-mib).",
                self.omitted,
                page_bytes >> 20
            ));
        }
        notes
    }
}

impl Small {
    fn of(image: &[u8], side: u32, thumbnail: &MakeThumbnail) -> Option<Self> {
        let bytes = thumbnail(image, side).ok()?;
        let reader = image::ImageReader::new(Cursor::new(&bytes)).with_guessed_format().ok()?;
        let kind = reader.format()?.to_mime_type();
        let (width, height) = reader.into_dimensions().ok()?;
        Some(Self { bytes, kind, tiny: width.max(height) <= TINY })
    }

    /// Where it can be cut so that the beginning is that of others of its kind: a multiple of three bytes, which base64 writes on
    /// their own.
    fn parts(&self) -> (&[u8], &[u8]) {
        let end = if self.kind == "image/jpeg" { scan(&self.bytes).unwrap_or(0) } else { 0 };
        self.bytes.split_at(end / 3 * 3)
    }
}

/// Where the first scan of a JPEG begins, behind all tables (ITU-T T.81, B.1.1.4).
fn scan(jpeg: &[u8]) -> Option<usize> {
    let mut at = 2;
    loop {
        let [0xff, marker, high, low] = *jpeg.get(at..at + 4)? else { return None };
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
        if marker == 0xda {
            return (at <= jpeg.len()).then_some(at);
        }
    }
}

/// Pictures for the script.
#[derive(Debug, Default, Serialize)]
pub(super) struct Stock {
    /// Beginnings of data URIs.
    starts: Vec<String>,
    /// For each picture which beginning, and the rest.
    rests: Vec<(usize, String)>,
    #[serde(skip)]
    places: HashMap<String, usize>,
    #[serde(skip)]
    known: HashMap<(Place, u32), usize>,
}

impl Stock {
    /// The number of a picture that was put here.
    pub(super) fn find(&self, place: &Place, side: u32) -> Option<usize> {
        self.known.get(&(place.clone(), side)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jpeg(shade: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let image = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([shade, (x * 7) as u8, (y * 5) as u8]));
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 80).encode_image(&image).unwrap();
        bytes
    }

    #[test]
    fn pictures_of_one_kind_share_their_beginning_and_are_whole_again() {
        let place = |id: &str| ("test".to_owned(), id.to_owned());
        let images = |_: &str, ids: &[String]| Ok(ids.iter().map(|id| (id.clone(), jpeg(id.len() as u8))).collect());
        let wanted = ["a", "bb", "ccc"].map(|id| (place(id), 32)).to_vec();
        let mut album = Album::of(wanted, 1 << 20, &images, &|bytes, _| Ok(bytes.to_vec()));
        let mut stock = Stock::default();
        for (at, id) in ["a", "bb", "ccc"].into_iter().enumerate() {
            assert_eq!(album.put(&mut stock, &place(id), 32), Some(at));
            let (start, rest) = &stock.rests[at];
            let uri = format!("{}{rest}", stock.starts[*start]);
            let encoded = uri.strip_prefix("data:image/jpeg;base64,").unwrap();
            assert_eq!(STANDARD.decode(encoded).unwrap(), jpeg(id.len() as u8));
        }
        assert_eq!(stock.starts.len(), 1);
        assert!(stock.rests[0].1.len() < stock.starts[0].len(), "the tables are more than the picture");
        assert_eq!(album.put(&mut stock, &place("a"), 32), Some(0), "no picture twice");
        assert_eq!(album.put(&mut stock, &place("elsewhere"), 32), None);
    }

    #[test]
    fn a_scan_is_found_only_where_there_is_one() {
        assert!(scan(&jpeg(3)).is_some_and(|at| at > 300));
        assert_eq!(scan(&jpeg(3)[..100]), None);
        assert_eq!((scan(b"\xff\xd8"), scan(b"\x89PNG\r\n\x1a\n")), (None, None));
    }
}
