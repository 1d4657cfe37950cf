"""The Streamlit console: frame, session, and what several pages draw."""
