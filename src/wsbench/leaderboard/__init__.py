"""Result records to leaderboards; torch-free."""
