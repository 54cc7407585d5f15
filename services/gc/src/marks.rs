//! What is reached from the roots, and why. Pure: edges in, nodes to ask about out.

use contracts::collect::{Edge, Node};
use std::collections::HashMap;

/// How a node was reached first.
#[derive(Clone, Debug)]
struct Reached {
    by: Node,
    reason: String,
    /// Whether its own references count.
    deep: bool,
}

/// The reached nodes of one collection.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    reached: HashMap<Node, Reached>,
}

impl Marks {
    /// Follows edges. Answers the nodes that are new, or whose references count from now on.
    pub(crate) fn follow(&mut self, edges: impl IntoIterator<Item = Edge>) -> Vec<(Node, bool)> {
        let mut news = Vec::new();
        for edge in edges {
            let deep = !edge.flat;
            match self.reached.get_mut(&edge.to) {
                Some(reached) if reached.deep || !deep => {}
                Some(reached) => {
                    reached.deep = true;
                    news.push((edge.to, true));
                }
                None => {
                    self.reached.insert(
                        edge.to.clone(),
                        Reached {
                            by: edge.from,
                            reason: edge.reason,
                            deep,
                        },
                    );
                    news.push((edge.to, deep));
                }
            }
        }
        news
    }

    /// How many nodes are reached.
    pub(crate) fn len(&self) -> u64 {
        self.reached.len() as u64
    }

    /// The references from a root down to `node`; empty when nothing reaches it.
    pub(crate) fn why(&self, node: &Node) -> Vec<Edge> {
        let mut chain = Vec::new();
        let mut at = node.clone();
        while let Some(reached) = self.reached.get(&at) {
            let (from, reason) = (reached.by.clone(), reached.reason.clone());
            chain.push(Edge {
                from: from.clone(),
                to: at.clone(),
                reason,
                flat: !reached.deep,
            });
            if from == at || chain.len() > self.reached.len() {
                break;
            }
            at = from;
        }
        chain.reverse();
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::collect::Resource;
    use contracts::{Digest, Namespace};

    fn node(byte: u8) -> Node {
        Node {
            namespace: Namespace::new("test").unwrap(),
            resource: Resource::Content(Digest::sha256(&[byte; 32])),
        }
    }

    fn edge(from: u8, to: u8, flat: bool) -> Edge {
        Edge {
            from: node(from),
            to: node(to),
            reason: "label".into(),
            flat,
        }
    }

    #[test]
    fn a_node_is_new_once_and_again_when_its_references_begin_to_count() {
        let mut marks = Marks::default();
        assert_eq!(marks.follow([edge(1, 2, true)]), [(node(2), false)]);
        assert_eq!(marks.follow([edge(1, 2, true)]), []);
        assert_eq!(marks.follow([edge(1, 2, false)]), [(node(2), true)]);
        assert_eq!(marks.follow([edge(1, 2, false)]), []);
        assert_eq!(marks.len(), 1);
    }

    #[test]
    fn why_tells_the_chain_from_the_root_also_in_a_circle() {
        let mut marks = Marks::default();
        marks.follow([edge(1, 1, false), edge(1, 2, false), edge(2, 3, false)]);
        let chain: Vec<Node> = marks
            .why(&node(3))
            .into_iter()
            .map(|edge| edge.to)
            .collect();
        assert_eq!(chain, [node(1), node(2), node(3)]);
        let mut circle = Marks::default();
        circle.follow([edge(1, 2, false), edge(2, 1, false)]);
        assert!(!circle.why(&node(1)).is_empty());
        assert!(marks.why(&node(9)).is_empty());
    }
}
