//! A source whose images are files of their own: class folders, and tables of paths.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::label::{ClassList, Counted, Label, Tally, class_list, splits, warnings};
use super::place::Place;
use super::split::Split;
use super::{DatasetError, Encoded, Opened, Record, Records, Source};

/// One image of the list.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: String,
    /// The file; none where the table names none.
    pub(super) place: Option<Place>,
    pub(super) split: String,
    pub(super) label: Option<Value>,
    /// Row of the table, or place in the folder's order.
    pub(super) row: u64,
}

/// A label as the table or the folder has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Value {
    Index(i64),
    Name(String),
}

impl Value {
    pub(super) fn label(value: Option<&Self>) -> Label<'_> {
        match value {
            None => Label::None,
            Some(Self::Index(index)) => Label::Index(*index),
            Some(Self::Name(name)) => Label::Name(name),
        }
    }
}

impl Entry {
    fn label(&self) -> Label<'_> {
        Value::label(self.label.as_ref())
    }
}

#[derive(Debug)]
struct Listing {
    /// Tables; their change changes everything.
    tables: Vec<Place>,
    entries: Arc<Vec<Entry>>,
    classes: Arc<ClassList>,
}

/// Counts and checks a list.
///
/// # Errors
/// When an id is in a split twice, or labels do not go together.
pub(super) fn open(kind: &'static str, origin: &Path, tables: Vec<Place>, entries: Vec<Entry>) -> Result<Opened, DatasetError> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.split.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut tallies = vec![Tally::default(); names.len()];
    let mut ids = HashSet::with_capacity(entries.len());
    for entry in &entries {
        if !ids.insert((entry.split.as_str(), entry.id.as_str())) {
            let (id, split) = (entry.id.clone(), entry.split.clone());
            return Err(DatasetError::DuplicateId { path: origin.to_owned(), id, split });
        }
        if let Ok(at) = names.binary_search(&entry.split.as_str()) {
            tallies[at].add(entry.label(), entry.row);
        }
    }
    let parts: Vec<_> = names.iter().zip(&tallies).map(|(split, tally)| Counted { path: origin, split, tally }).collect();
    let classes = class_list(&parts, None)?;
    let splits = splits(&parts, &classes);
    Ok(Opened {
        kind,
        warnings: warnings(&classes.names, &splits),
        classes: classes.names.clone(),
        splits,
        sorted_by_class: true,
        source: Box::new(Listing { tables, entries: Arc::new(entries), classes: Arc::new(classes) }),
    })
}

impl Listing {
    /// Every `stride`-th image of a split; what lies between is not fetched.
    fn every(&self, split: &Split, stride: usize) -> Records {
        let (entries, classes, name) = (Arc::clone(&self.entries), Arc::clone(&self.classes), Arc::clone(&split.name));
        let (count, of_split) = (entries.len(), Arc::clone(&entries));
        let wanted = Arc::clone(&name);
        let places = (0..count).filter(move |&at| of_split.get(at).is_some_and(|entry| *entry.split == *wanted)).step_by(stride);
        Records::new(places.filter_map(move |at| {
            let entry = entries.get(at)?;
            let image = match &entry.place {
                Some(place) => Encoded::At(place.coming()),
                None => Encoded::Unusable("the table names no file".to_owned()),
            };
            Some(Ok(Record { id: entry.id.clone(), split: Arc::clone(&name), label: classes.index(entry.label()), image }))
        }))
    }
}

impl Source for Listing {
    fn records(&self, split: &Split) -> Records {
        self.every(split, 1)
    }

    fn sample(&self, split: &Split, images: usize) -> Records {
        self.every(split, split.stride(images))
    }

    fn files(&self) -> Vec<Place> {
        self.tables.iter().chain(self.entries.iter().filter_map(|entry| entry.place.as_ref())).cloned().collect()
    }

    fn images(&self, split: &Split, ids: &HashSet<String>) -> Result<HashMap<String, Bytes>, DatasetError> {
        let mut images = HashMap::with_capacity(ids.len());
        let asked = |entry: &&Entry| *entry.split == *split.name && ids.contains(&entry.id);
        for entry in self.entries.iter().filter(asked) {
            if let Some(place) = &entry.place
                && let Ok(bytes) = place.image()?
            {
                images.insert(entry.id.clone(), bytes);
            }
        }
        Ok(images)
    }
}
