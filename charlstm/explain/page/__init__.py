"""The page of `charlstm explain`: its builder, and its HTML, CSS and JavaScript."""
