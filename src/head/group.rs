//! Which rows belong together, such as the frames of one film or the pictures of one patient.

use std::collections::BTreeMap;

use super::HeadError;
use super::holdout::hash;

/// Group of a row: the folder of its id with the rule `folder`, else the id up to the first occurrence of the rule's text; an
/// id without it is a group of its own.
pub(super) fn group<'a>(rule: &str, id: &'a str) -> &'a str {
    match rule {
        "folder" => id.rsplit_once('/').map_or("", |(folder, _)| folder),
        separator => id.split_once(separator).map_or(id, |(before, _)| before),
    }
}

/// Rows of the groups that are held out: in the order of a hash of seed and group, each that brings the number of rows nearer
/// to `target`; at least one group, never all.
pub(super) fn held_groups(rule: &str, seed: u64, target: usize, rows: &[usize], ids: &[String]) -> Result<Vec<usize>, HeadError> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    rows.iter().for_each(|&row| groups.entry(group(rule, &ids[row])).or_default().push(row));
    if let (1, Some(name)) = (groups.len(), groups.keys().next()) {
        return Err(HeadError::OneGroup { rule: rule.to_owned(), group: (*name).to_owned(), rows: rows.len() });
    }
    let mut groups: Vec<(&str, Vec<usize>)> = groups.into_iter().collect();
    groups.sort_by_cached_key(|(name, _)| hash(seed, name));
    let mut held: Vec<usize> = Vec::new();
    for (_, rows) in &groups {
        if (held.len() + rows.len()).abs_diff(target) < held.len().abs_diff(target) && held.len() < target {
            held.extend(rows);
        }
    }
    if held.is_empty() {
        held.extend(groups.iter().map(|(_, rows)| rows).min_by_key(|rows| rows.len()).into_iter().flatten());
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_follow_the_rule() {
        assert_eq!(group("folder", "cat/film 1/03.png"), "cat/film 1");
        assert_eq!(group("folder", "03.png"), "");
        assert_eq!(group("_", "cat/p12_3_left.png"), "cat/p12");
        assert_eq!(group("_", "lone.png"), "lone.png");
    }
}
