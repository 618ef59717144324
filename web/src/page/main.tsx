import { render } from 'preact';
import { App } from './app.js';
import { begin } from './session.js';
import './style.css';

render(<App />, document.getElementById('app')!);
void begin();
