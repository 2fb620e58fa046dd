//! `realpeer help TOPIC`: what somebody wants to understand before the flags make sense.

/// The topics and their texts.
pub const TOPICS: [(&str, &str); 5] = [
    ("routing", include_str!("topics/routing.txt")),
    ("headers", include_str!("topics/headers.txt")),
    ("containers", include_str!("topics/containers.txt")),
    ("migrate", include_str!("topics/migrate.txt")),
    ("bans", include_str!("topics/bans.txt")),
];

/// The text about a topic.
pub fn text(topic: &str) -> Option<&'static str> {
    let found = TOPICS.iter().find(|(name, _)| *name == topic);
    found.map(|(_, text)| *text)
}
