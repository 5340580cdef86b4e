//! A name that is not there to the names that it may have been meant for.

/// The likeliest of `known`, the best first, three at most.
pub(crate) fn similar<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let name = name.to_lowercase();
    let most = (name.chars().count() / 3).max(1);
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|known| {
            let lower = known.to_lowercase();
            let is_part = lower.contains(&name) || name.contains(&lower);
            let distance = if is_part { 0 } else { distance(&name, &lower) };
            (distance <= most).then_some((distance, known))
        })
        .collect();
    near.sort_unstable();
    near.into_iter().take(3).map(|(_, known)| known).collect()
}

/// How many letters have to be added, left out or replaced (Levenshtein's distance).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_and_a_part_of_a_name_are_similar() {
        let known = ["echo", "hello", "hello-world", "billing", "user.rpc"];
        assert_eq!(similar("ehco", known), [] as [&str; 0], "two of four letters are too many");
        assert_eq!(similar("eco", known), ["echo"]);
        assert_eq!(similar("Echo", known), ["echo"], "case matters in etcd, and not here");
        assert_eq!(similar("helo", known), ["hello"]);
        assert_eq!(similar("hello.Hello", known), ["hello"]);
        assert_eq!(similar("user", known), ["user.rpc"]);
        assert_eq!(similar("biling", known), ["billing"]);
        assert_eq!(similar("nothing-like-it", known), [] as [&str; 0]);
    }

    #[test]
    fn the_distance_counts_letters() {
        for (a, b, expected) in
            [("", "", 0), ("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }
}
